// A beam search as the engine runs it: a prompt that is computed once, then several sequences that share its blocks and those
// of whatever else they have in common. A beam that goes on in several ways is forked; the block that it has filled in part is
// copied when one of them writes to it.

import { QFormerError } from '../../errors.js';
import { BeamScores, type Hypothesis, type Survivor } from './beam-scores.js';
import type { EncoderInput } from './encoder-input.js';
import type { Candidates, GroupStep, SequenceGroup, StepOutput } from './group.js';
import type { BlockManager } from './kv-cache.js';
import type { Beam, Delta, EngineResult, FinishReason } from '../protocol.js';
import type { Sequence } from './sequence.js';

/** A request with `numBeams` above 1. Its text comes as one piece at the end. */
export class BeamSearch implements SequenceGroup {
  readonly id: number;
  readonly promptLength: number;
  readonly inputLength: number;
  readonly encoder: EncoderInput | undefined;
  readonly width: number;
  readonly answerTokens = 1;
  preemptions = 0;
  #beams: Sequence[];
  readonly #scores: BeamScores;
  /** What came of the running beams; after a preemption it may come in different steps. */
  readonly #candidates = new Map<Sequence, Candidates>();

  /** `prompt` is the sequence without an answer. */
  constructor(private readonly prompt: Sequence) {
    this.id = prompt.id;
    this.promptLength = prompt.promptLength;
    this.inputLength = prompt.inputLength;
    this.encoder = prompt.encoder;
    this.width = prompt.params.numBeams;
    this.#beams = [prompt];
    this.#scores = new BeamScores({ ...prompt.params, numCandidates: prompt.numCandidates });
  }

  get sequences(): readonly Sequence[] {
    return this.#beams;
  }

  markStarted(now: number, cachedTokens: number): void {
    this.prompt.markStarted(now, cachedTokens);
  }

  accept(
    outputs: ReadonlyMap<Sequence, StepOutput>,
    { blocks, maxTokens, now }: GroupStep,
  ): { delta?: Delta; finished?: FinishReason } {
    for (const [sequence, output] of outputs) {
      if ('candidates' in output) this.#candidates.set(sequence, output.candidates);
    }
    const candidates = this.#beams.flatMap((beam) => this.#candidates.get(beam) ?? []);
    if (candidates.length < this.#beams.length) return {};
    this.#candidates.clear();
    this.prompt.timer.token(now);
    const maxNewTokens = Math.min(this.prompt.params.maxNewTokens, maxTokens - this.promptLength);
    const survivors = this.#scores.advance(candidates, this.#beams.map(answerOf), maxNewTokens, (answer) =>
      this.#endOf(answer, maxNewTokens),
    );
    if (survivors.length > 0) {
      this.#goOn(survivors, blocks);
      return {};
    }
    const [best] = this.#scores.finished;
    if (best === undefined)
      throw new QFormerError('FORMAT', 'the model gave no finite score; are its weights damaged?');
    return { delta: this.#show(best), finished: best.reason };
  }

  flush(): Delta | undefined {
    const [best] = this.#answers();
    return best === undefined || best.tokenIds.length === 0 ? undefined : this.#show(best);
  }

  result(finishReason: FinishReason, now: number): EngineResult {
    const answers = this.#answers().slice(0, this.prompt.params.numReturnSequences);
    const beams = answers.map(({ tokenIds, score }): Beam => ({ text: this.#textOf(tokenIds), tokenIds, score }));
    const { text, tokenIds } = beams[0]!;
    return {
      text,
      tokenIds,
      finishReason,
      usage: this.prompt.usage(tokenIds.length),
      timings: this.prompt.timer.timings(tokenIds.length, now),
      beams,
      seed: this.prompt.params.seed,
    };
  }

  #endOf(answer: readonly number[], maxNewTokens: number): FinishReason | undefined {
    const { prompt } = this;
    const stops = prompt.params.stop.length > 0;
    if (prompt.isEos(answer[answer.length - 1]!) || (stops && prompt.render(answer, false).stopped)) return 'stop';
    return answer.length >= maxNewTokens ? 'length' : undefined;
  }

  /** Makes the running beams those of `survivors`: the first child of a beam takes its place, the others are forks of it. */
  #goOn(survivors: readonly Survivor[], blocks: BlockManager): void {
    const parents = this.#beams;
    const heirs = new Set<number>();
    this.#beams = survivors.map(({ parent: index }) => {
      const parent = parents[index]!;
      if (!heirs.has(index)) {
        heirs.add(index);
        return parent;
      }
      const child = parent.fork();
      blocks.fork(parent, child, parent.numComputed);
      return child;
    });
    survivors.forEach(({ tokenId }, i) => this.#beams[i]!.extend(tokenId));
    parents.forEach((parent, index) => heirs.has(index) || blocks.release(parent));
  }

  /** What the request gets: finished answers, or where it ends before there is one the running ones. */
  #answers(): Hypothesis[] {
    const { finished } = this.#scores;
    return finished.length > 0 ? finished : this.#scores.interrupted(this.#beams.map(answerOf));
  }

  #show({ tokenIds }: Hypothesis): Delta {
    return { text: this.#textOf(tokenIds), tokenIds };
  }

  #textOf(tokenIds: readonly number[]): string {
    return this.prompt.render(tokenIds, true).text;
  }
}

const answerOf = (beam: Sequence): number[] => beam.tokens.slice(beam.promptLength);
