// A runner without tensors whose next token depends on every key and value a real one would read: each slot of its pool holds
// a digest of the whole prefix, read through the block table. A wrongly shared, stale or overwritten block changes the answer.
import { resolveParams, type GenerateParams } from '../../lib/engine/params.js';
import type { Runner, StepOutput } from '../../lib/engine/engine.js';
import type { ScheduledSequence } from '../../lib/engine/scheduler.js';
import { Sequence, type SequenceImage } from '../../lib/engine/sequence.js';
import type { Detokenizer } from '../../lib/engine/text-stream.js';

export const VOCAB = 50;
export const EOS = 0;

/** Ids 1… are the letters a, b, c, …; one letter a token. */
export class LetterDetokenizer implements Detokenizer {
  push(id: number): string {
    return letter(id);
  }
  flush(): string {
    return '';
  }
}

export function letter(id: number): string {
  return String.fromCodePoint(96 + id);
}

function mix(state: number, value: number): number {
  let h = Math.imul(state ^ value, 0x9e3779b1);
  h ^= h >>> 15;
  h = Math.imul(h, 0x85ebca6b);
  return (h ^ (h >>> 13)) | 0;
}

function seedState(sequence: Sequence): number {
  let state = 17;
  if (sequence.images.length === 0) return state; // the instruction only changes what is read from an image
  for (const image of sequence.images) for (const c of image.digest) state = mix(state, c.codePointAt(0)!);
  for (const id of sequence.instructionIds ?? []) state = mix(state, id + 7);
  return state;
}

function choose(state: number, sequence: Sequence, eosEvery: number): number {
  const banned = new Set(sequence.rules.banned());
  let h = mix(mix(state, sequence.params.seed), sequence.numGenerated);
  for (;;) {
    h = mix(h, 1);
    const id = (h >>> 0) % eosEvery === 0 ? EOS : 1 + ((h >>> 8) % (VOCAB - 1));
    if (!banned.has(id)) return id;
  }
}

export interface FakeRunnerOptions {
  numBlocks: number;
  blockSize: number;
  /** One token in so many is the end of the answer. */
  eosEvery?: number;
}

export class FakeRunner implements Runner {
  readonly slots: Int32Array;
  /** Called before a step; may throw. */
  before: ((batch: readonly ScheduledSequence[]) => void) | undefined;
  /** Called for each sampled sequence; may answer an error for it. */
  fault: ((sequence: Sequence) => unknown) | undefined;
  maxBatch = 0;
  computedTokens = 0;

  constructor(private readonly options: FakeRunnerOptions) {
    this.slots = new Int32Array(options.numBlocks * options.blockSize);
  }

  runStep(batch: readonly ScheduledSequence[]): (StepOutput | undefined)[] {
    this.before?.(batch);
    this.maxBatch = Math.max(this.maxBatch, batch.length);
    return batch.map((item) => this.#run(item));
  }

  #run({ sequence, start, count, sample }: ScheduledSequence): StepOutput | undefined {
    let state = start === 0 ? seedState(sequence) : this.slots[this.#slot(sequence, start - 1)]!;
    for (let position = start; position < start + count; position++) {
      state = mix(state, sequence.tokens[position]!);
      this.slots[this.#slot(sequence, position)] = state;
    }
    this.computedTokens += count;
    if (!sample) return undefined;
    const error = this.fault?.(sequence);
    if (error !== undefined) return { error };
    return { tokenId: choose(state, sequence, this.options.eosEvery ?? 40) };
  }

  #slot(sequence: Sequence, position: number): number {
    const { blockSize } = this.options;
    return sequence.blockTable[Math.floor(position / blockSize)]! * blockSize + (position % blockSize);
  }
}

export interface FakeRequest {
  prompt: number[];
  params?: GenerateParams;
  images?: string[];
  instructionIds?: number[];
}

/** A sequence for the fake runner; images are given by digest alone. */
export function fakeSequence(id: number, request: FakeRequest): Sequence {
  const images: SequenceImage[] = (request.images ?? []).map((digest) => ({
    digest,
    data: new Uint8Array(),
    width: 0,
    height: 0,
  }));
  return new Sequence({
    id,
    promptTokens: request.prompt,
    images,
    ...(request.instructionIds === undefined ? {} : { instructionIds: request.instructionIds }),
    params: resolveParams({ seed: 1, ...request.params }),
    eosTokenIds: [EOS],
    badWordIds: (request.params?.badWords ?? []) as number[][],
    detokenizer: new LetterDetokenizer(),
    arrival: 0,
  });
}

/** The answer of a request that has the machine to itself: no pool, no engine, just the definition. */
export function aloneTokens(request: FakeRequest, maxContext: number, eosEvery = 40): number[] {
  const sequence = fakeSequence(-1, request);
  let state = seedState(sequence);
  for (const id of request.prompt) state = mix(state, id);
  for (;;) {
    const id = choose(state, sequence, eosEvery);
    state = mix(state, id);
    const { finished } = sequence.append(id, undefined, maxContext, 0);
    if (finished !== undefined) return sequence.tokens.slice(sequence.promptLength);
  }
}
