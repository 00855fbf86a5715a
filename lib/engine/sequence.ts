// One request while it lives in the engine: its tokens, how many of them are in the KV cache, its blocks, what it may
// produce next, its visible text, and when it is finished. A sequence only records; the scheduler and the engine decide.

import { LogitRules } from './logits.js';
import type { ResolvedParams } from './params.js';
import type { Delta, EngineResult, FinishReason, Timings, TokenLogprob } from './protocol.js';
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
  /** Positions of the image placeholders, ascending; the first numQueryTokens belong to the first image and so on. */
  imagePositions?: readonly number[];
  images?: readonly SequenceImage[];
  /** Ids the Q-Former reads, for instruction-aware models. */
  instructionIds?: readonly number[];
  params: ResolvedParams;
  eosTokenIds: readonly number[];
  badWordIds?: readonly (readonly number[])[];
  detokenizer: Detokenizer;
  /** The text has no white space around it. Default false. */
  trimText?: boolean;
  /** Clock reading at arrival, ms. */
  arrival: number;
}

export class Sequence {
  readonly id: number;
  readonly params: ResolvedParams;
  /** Prompt and generated tokens. */
  readonly tokens: number[];
  readonly promptLength: number;
  readonly imagePositions: readonly number[];
  readonly images: readonly SequenceImage[];
  readonly instructionIds: readonly number[] | undefined;
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
  /** Order of arrival, set by the scheduler. */
  arrivalOrder = 0;

  /** Time spent on its images, ms; the runner adds to it. */
  imageMs = 0;
  #started: number | undefined;
  #firstToken: number | undefined;
  #lastToken: number | undefined;
  readonly #arrival: number;
  readonly #eos: ReadonlySet<number>;
  readonly #text: TextStream;
  readonly #logprobs: TokenLogprob[] = [];

  constructor(init: SequenceInit) {
    this.id = init.id;
    this.params = init.params;
    this.tokens = [...init.promptTokens];
    this.promptLength = init.promptTokens.length;
    this.imagePositions = init.imagePositions ?? [];
    this.images = init.images ?? [];
    this.instructionIds = init.instructionIds;
    this.cacheSeed = cacheSeed(this.images, init.instructionIds);
    this.rules = new LogitRules(
      { ...init.params, badWords: init.badWordIds ?? [], eosTokenIds: init.eosTokenIds },
      this.tokens,
    );
    this.#arrival = init.arrival;
    this.#eos = new Set(init.params.ignoreEos ? [] : init.eosTokenIds);
    this.#text = new TextStream(init.detokenizer, init.params.stop, init.trimText);
  }

  /** Generated tokens so far; also the sampling step of the next one. */
  get numGenerated(): number {
    return this.tokens.length - this.promptLength;
  }

  /** Tokens to compute before the next one can be sampled: 1 while decoding. */
  get numPending(): number {
    return this.tokens.length - this.numComputed;
  }

  /** Notes the first step that runs this sequence. */
  markStarted(now: number, cachedTokens: number): void {
    if (this.#started !== undefined) return;
    this.#started = now;
    this.cachedTokens = cachedTokens;
  }

  /** Adds a sampled token. `maxTokens` bounds prompt and answer together. Answers what to show and whether it was the last. */
  append(
    id: number,
    logprob: TokenLogprob | undefined,
    maxTokens: number,
    now: number,
  ): { delta: Delta; finished?: FinishReason } {
    this.#firstToken ??= now;
    this.#lastToken = now;
    this.tokens.push(id);
    this.rules.append(id);
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

  /** Text held back so far, for an answer that ends early. */
  flush(): string {
    return this.#text.finish();
  }

  /** What the request gets in the end. */
  result(finishReason: FinishReason, now: number): EngineResult {
    const result: EngineResult = {
      text: this.#text.text,
      tokenIds: this.tokens.slice(this.promptLength),
      finishReason,
      usage: {
        promptTokens: this.promptLength,
        completionTokens: this.numGenerated,
        cachedTokens: this.cachedTokens,
        imageTokens: this.imagePositions.length,
      },
      timings: this.#timings(now),
      seed: this.params.seed,
    };
    if (this.params.logprobs >= 0) result.logprobs = this.#logprobs;
    return result;
  }

  #timings(now: number): Timings {
    const started = this.#started ?? now;
    const first = this.#firstToken ?? now;
    const last = this.#lastToken ?? now;
    const decodeMs = last - first;
    const decoded = this.numGenerated - 1;
    return {
      queueMs: started - this.#arrival,
      imageMs: this.imageMs,
      prefillMs: Math.max(0, first - started - this.imageMs),
      decodeMs,
      timeToFirstTokenMs: first - this.#arrival,
      totalMs: now - this.#arrival,
      tokensPerSecond: decoded > 0 && decodeMs > 0 ? (decoded * 1000) / decodeMs : 0,
    };
  }
}

/** Two requests share a prefix only where images and what the Q-Former read of them are equal; lengths keep parts apart. */
function cacheSeed(images: readonly SequenceImage[], instructionIds: readonly number[] | undefined): string {
  if (images.length === 0) return '';
  const digests = images.map((image) => image.digest);
  return JSON.stringify([digests, instructionIds ?? null]);
}
