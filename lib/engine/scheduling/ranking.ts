// Log-probabilities of given answers to one prompt. The prompt is computed once; its last row scores the first token of every
// candidate, so that candidates of one token cost nothing more. Longer ones are forks of the prompt that compute their own
// tokens, a few at a time.

import type { EncoderInput } from './encoder-input.js';
import type { GroupStep, SequenceGroup, StepOutput } from './group.js';
import type { EngineResult, FinishReason } from '../protocol.js';
import type { Sequence } from './sequence.js';

/** Candidates that are computed at the same time. */
const MAX_WIDTH = 8;

/** A candidate of several tokens while it is computed. */
interface Running {
  index: number;
  sequence: Sequence;
}

/** A request that scores candidates instead of generating. */
export class Ranking implements SequenceGroup {
  readonly id: number;
  readonly promptLength: number;
  readonly inputLength: number;
  readonly encoder: EncoderInput | undefined;
  readonly answerTokens: number;
  readonly width: number;
  preemptions = 0;
  readonly #logprobs: number[][];
  readonly #waiting: number[];
  #running: Running[] = [];

  /** `prompt` without an answer; `candidates`: ids, at least one each. */
  constructor(
    private readonly prompt: Sequence,
    private readonly candidates: readonly (readonly number[])[],
  ) {
    this.id = prompt.id;
    this.promptLength = prompt.promptLength;
    this.inputLength = prompt.inputLength;
    this.encoder = prompt.encoder;
    this.answerTokens = Math.max(...candidates.map(({ length }) => length));
    prompt.probe = { from: this.promptLength - 1, ids: [candidates.map(([first]) => first!)] };
    this.#logprobs = candidates.map(() => []);
    this.#waiting = candidates.flatMap(({ length }, index) => (length > 1 ? [index] : []));
    this.width = Math.max(1, Math.min(MAX_WIDTH, this.#waiting.length));
  }

  get sequences(): readonly Sequence[] {
    return [this.prompt, ...this.#running.map(({ sequence }) => sequence)];
  }

  markStarted(now: number, cachedTokens: number): void {
    this.prompt.markStarted(now, cachedTokens);
  }

  accept(outputs: ReadonlyMap<Sequence, StepOutput>, { blocks, now }: GroupStep): { finished?: FinishReason } {
    this.prompt.timer.token(now);
    for (const [sequence, output] of outputs) {
      if (!('logprobs' in output)) continue;
      const index = this.#running.find((candidate) => candidate.sequence === sequence)?.index;
      // By position, because after a preemption rows come a second time.
      if (index === undefined) output.logprobs[0]!.forEach((value, i) => (this.#logprobs[i]![0] = value));
      else output.logprobs.forEach(([value], i) => (this.#logprobs[index]![1 + output.row + i] = value!));
    }
    const ended = this.#running.filter(({ sequence }) => sequence.numPending === 0);
    for (const { sequence } of ended) blocks.release(sequence);
    this.#running = this.#running.filter((candidate) => !ended.includes(candidate));
    while (this.#running.length < this.width && this.#waiting.length > 0) this.#start(this.#waiting.shift()!);
    return this.#running.length > 0 ? {} : { finished: 'stop' };
  }

  flush(): undefined {
    return undefined;
  }

  result(finishReason: FinishReason, now: number): EngineResult {
    const { prompt } = this;
    return {
      text: '',
      tokenIds: [],
      finishReason,
      usage: prompt.usage(0),
      timings: prompt.timer.timings(0, now),
      candidates: this.candidates.map((ids, i) => ({ tokenIds: [...ids], logprobs: this.#logprobs[i]! })),
      seed: prompt.params.seed,
    };
  }

  /** The scheduler gives the fork the blocks of the prompt. */
  #start(index: number): void {
    const ids = this.candidates[index]!;
    const sequence = this.prompt.fork();
    sequence.probe = { from: this.promptLength, ids: ids.slice(1).map((id) => [id]) };
    for (const id of ids.slice(0, -1)) sequence.extend(id);
    this.#running.push({ index, sequence });
  }
}
