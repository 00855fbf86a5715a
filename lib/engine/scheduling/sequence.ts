// One line of tokens while it lives in the engine: how many of them are in the KV cache, its blocks, what it may produce
// next, its visible text, and when it is finished. A sequence only records; the scheduler and the engine decide. Most
// requests are one sequence, and a sequence is the group of itself; those of a beam search are forks of a first one.

import { QFormerError } from '../../errors.js';
import { EncoderInput } from './encoder-input.js';
import type { GroupStep, Probe, SequenceGroup, StepOutput } from './group.js';
import { LogitRules } from './logits.js';
import type { ResolvedParams } from '../params.js';
import type { Delta, EngineResult, FinishReason, TokenLogprob, Usage } from '../protocol.js';
import { RequestTimer } from './request-timer.js';
import { TextStream, type Detokenizer } from './text-stream.js';

/** An image of a request: decoded pixels and their digest. */
export interface SequenceImage {
  /** Of pixels and size. */
  digest: string;
  /** RGB, rows top to bottom. */
  data: Uint8Array;
  width: number;
  height: number;
}

/** Everything a sequence is made of. */
export interface SequenceInit {
  id: number;
  /** Prompt with image placeholders; -1 marks a placeholder in the legacy layout, which has no id for it. */
  promptTokens: readonly number[];
  /** For an encoder–decoder model what the encoder reads, placeholders included; `promptTokens` are what the decoder begins with. */
  encoderTokens?: readonly number[];
  /** Positions of the image placeholders in what is read, ascending; the first numQueryTokens belong to the first image and so on. */
  imagePositions?: readonly number[];
  images?: readonly SequenceImage[];
  /** Ids the Q-Former reads, for instruction-aware models. */
  instructionIds?: readonly number[];
  /** Identity of the adapter that decides its results; absent for the bare model. */
  adapter?: string;
  params: ResolvedParams;
  eosTokenIds: readonly number[];
  badWordIds?: readonly (readonly number[])[];
  /** As in BanRules. */
  noTokens?: Int32Array;
  /** Makes the detokenizer of one answer. */
  detokenizer: () => Detokenizer;
  /** The text has no white space around it. Default false. */
  trimText?: boolean;
  /** Clock reading at arrival, ms. */
  arrival: number;
}

export class Sequence implements SequenceGroup {
  readonly id: number;
  readonly width = 1;
  readonly answerTokens = 1;
  readonly sequences: readonly Sequence[] = [this];
  readonly params: ResolvedParams;
  /** Prompt and generated tokens. */
  readonly tokens: number[];
  readonly promptLength: number;
  readonly imagePositions: readonly number[];
  readonly images: readonly SequenceImage[];
  readonly instructionIds: readonly number[] | undefined;
  /** What the encoder reads, in an encoder–decoder model; shared by forks. */
  readonly encoder: EncoderInput | undefined;
  readonly adapter: string | undefined;
  readonly cacheSeed: string;
  readonly rules: LogitRules;

  /** Owned by the block manager. */
  blockTable: number[] = [];
  readonly blockHashes: string[] = [];
  /** Tokens whose keys and values are in the cache. */
  numComputed = 0;
  /** Prompt tokens found in the prefix cache when it first ran. */
  cachedTokens = 0;
  preemptions = 0;
  /** What is wanted of it instead of a next token. */
  probe: Probe | undefined;
  /** Shared by forks. */
  readonly timer: RequestTimer;

  readonly #init: SequenceInit;
  readonly #eos: ReadonlySet<number>;
  readonly #text: TextStream;
  readonly #logprobs: TokenLogprob[] = [];

  /** With `origin`, a sequence that goes on from its tokens by itself; see `fork`. */
  constructor(init: SequenceInit, origin?: Sequence) {
    this.#init = init;
    this.id = init.id;
    this.params = init.params;
    this.tokens = [...(origin?.tokens ?? init.promptTokens)];
    this.promptLength = init.promptTokens.length;
    this.imagePositions = init.imagePositions ?? [];
    this.images = init.images ?? [];
    this.instructionIds = init.instructionIds;
    this.adapter = init.adapter;
    const seed = cacheSeed(this.images, init.instructionIds, init.adapter);
    this.encoder = origin?.encoder ?? (init.encoderTokens && new EncoderInput(init.encoderTokens, seed));
    this.cacheSeed = this.encoder === undefined ? seed : JSON.stringify(['decoder', seed, init.encoderTokens]);
    this.rules =
      origin?.rules.fork() ??
      new LogitRules(
        {
          ...init.params,
          badWords: init.badWordIds ?? [],
          eosTokenIds: init.eosTokenIds,
          ...(init.noTokens && { noTokens: init.noTokens }),
        },
        this.tokens,
      );
    this.timer = origin?.timer ?? new RequestTimer(init.arrival);
    this.numComputed = origin?.numComputed ?? 0;
    this.blockHashes = [...(origin?.blockHashes ?? [])];
    this.#eos = new Set(init.params.ignoreEos ? [] : init.eosTokenIds);
    this.#text = new TextStream(init.detokenizer(), init.params.stop, init.trimText);
  }

  /** A sequence with the same tokens that goes on by itself. The block manager gives it the blocks of this one. */
  fork(): Sequence {
    return new Sequence(this.#init, this);
  }

  /** Tokens of the prompt as the model reads it. */
  get inputLength(): number {
    return this.encoder?.tokens.length ?? this.promptLength;
  }

  /** Generated tokens so far; also the sampling step of the next one. */
  get numGenerated(): number {
    return this.tokens.length - this.promptLength;
  }

  /** Tokens to compute before the next one can be sampled: 1 while decoding. */
  get numPending(): number {
    return this.tokens.length - this.numComputed;
  }

  /** Positions of tokens [start, end) whose logits are wanted; `end` ends at the next token. */
  logitPositions(start: number, end: number): { from: number; to: number } {
    if (this.probe !== undefined) return { from: Math.max(start, this.probe.from), to: end };
    return { from: end === this.tokens.length ? end - 1 : end, to: end };
  }

  /** Candidates for the next token that a beam search wants of it; 0: one token is drawn. */
  get numCandidates(): number {
    const { numBeams } = this.params;
    return numBeams === 1 ? 0 : Math.max(2, 1 + this.#eos.size) * numBeams;
  }

  /** Whether `id` ends an answer. */
  isEos(id: number): boolean {
    return this.#eos.has(id);
  }

  markStarted(now: number, cachedTokens: number): void {
    if (this.timer.start(now)) this.cachedTokens = cachedTokens;
  }

  accept(outputs: ReadonlyMap<Sequence, StepOutput>, { maxTokens, now }: GroupStep) {
    const output = outputs.get(this);
    if (output === undefined || !('tokenId' in output)) throw new QFormerError('INTERNAL', 'the runner gave no token');
    return this.append(output.tokenId, output.logprob, maxTokens, now);
  }

  /** Adds a token without looking at its text. */
  extend(id: number): void {
    this.tokens.push(id);
    this.rules.append(id);
  }

  /** Adds a sampled token. `maxTokens` bounds prompt and answer together. Answers what to show and whether it was the last. */
  append(
    id: number,
    logprob: TokenLogprob | undefined,
    maxTokens: number,
    now: number,
  ): { delta: Delta; finished?: FinishReason } {
    this.timer.token(now);
    this.extend(id);
    const mayStop = this.numGenerated >= this.params.minNewTokens;
    const isEos = this.#eos.has(id);
    let text = isEos ? '' : this.#text.push(id, mayStop);
    const full = this.numGenerated >= this.params.maxNewTokens || this.tokens.length >= maxTokens;
    if (isEos || (full && !this.#text.stopped)) text += this.#text.finish(mayStop);
    const delta: Delta = { text, tokenIds: [id] };
    if (logprob !== undefined) {
      this.#logprobs.push(logprob);
      delta.logprobs = [logprob];
    }
    if (isEos || this.#text.stopped) return { delta, finished: 'stop' };
    return full ? { delta, finished: 'length' } : { delta };
  }

  flush(): Delta | undefined {
    const text = this.#text.finish();
    return text === '' ? undefined : { text, tokenIds: [] };
  }

  result(finishReason: FinishReason, now: number): EngineResult {
    const tokenIds = this.tokens.slice(this.promptLength);
    const result: EngineResult = {
      text: this.#text.text,
      tokenIds,
      finishReason,
      usage: this.usage(tokenIds.length),
      timings: this.timer.timings(tokenIds.length, now),
      seed: this.params.seed,
    };
    if (this.params.logprobs >= 0) result.logprobs = this.#logprobs;
    return result;
  }

  /** Of a request with this prompt. */
  usage(completionTokens: number): Usage {
    const { inputLength: promptTokens, cachedTokens, imagePositions } = this;
    return { promptTokens, completionTokens, cachedTokens, imageTokens: imagePositions.length };
  }

  /** The text of another answer to this prompt, and whether a stop string ends it. `whole`: nothing is to come, held text is shown. */
  render(answer: readonly number[], whole: boolean): { text: string; stopped: boolean } {
    const { stop, minNewTokens } = this.params;
    const stream = new TextStream(this.#init.detokenizer(), stop, this.#init.trimText);
    answer.forEach((id, i) => this.isEos(id) || stream.push(id, i + 1 >= minNewTokens));
    if (whole) stream.finish(answer.length >= minNewTokens);
    return { text: stream.text, stopped: stream.stopped };
  }
}

/** Two requests share a prefix only where images, what the Q-Former read of them and adapter are equal; lengths keep parts apart. */
function cacheSeed(
  images: readonly SequenceImage[],
  instructionIds: readonly number[] | undefined,
  adapter: string | undefined,
): string {
  if (images.length === 0 && adapter === undefined) return '';
  const digests = images.map((image) => image.digest);
  return JSON.stringify([digests, instructionIds ?? null, ...(adapter === undefined ? [] : [adapter])]);
}
