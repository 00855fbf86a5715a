// A runner without tensors whose next token depends on every key and value a real one would read: each slot of its pool holds
// a digest of the whole prefix, read through the block table. A wrongly shared, stale or overwritten block changes the answer.
import { BeamSearch } from '../../lib/engine/scheduling/beam-search.js';
import { resolveParams, type GenerateParams } from '../../lib/engine/params.js';
import type { Runner } from '../../lib/engine/scheduling/engine.js';
import type { Candidates, SequenceGroup, StepOutput } from '../../lib/engine/scheduling/group.js';
import type { BlockCopy } from '../../lib/engine/scheduling/kv-cache.js';
import type { ScheduledSequence } from '../../lib/engine/scheduling/scheduler.js';
import { Sequence, type SequenceImage } from '../../lib/engine/scheduling/sequence.js';
import type { Detokenizer } from '../../lib/engine/scheduling/text-stream.js';

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
  const banned = new Set([...sequence.rules.alwaysBanned.flatMap((ids) => [...ids]), ...sequence.rules.banned()]);
  let h = mix(mix(state, sequence.params.seed), sequence.numGenerated);
  for (;;) {
    h = mix(h, 1);
    const id = (h >>> 0) % eosEvery === 0 ? EOS : 1 + ((h >>> 8) % (VOCAB - 1));
    if (!banned.has(id)) return id;
  }
}

/** The best next tokens by log-probabilities that depend on the whole prefix. */
function rank(state: number, sequence: Sequence): Candidates {
  const banned = new Set([...sequence.rules.alwaysBanned.flatMap((ids) => [...ids]), ...sequence.rules.banned()]);
  const all = Array.from({ length: VOCAB }, (_, id) => {
    return { id, logprob: Math.fround(-(mix(mix(state, sequence.params.seed), id + 1) >>> 0) / 2 ** 30) };
  }).filter(({ id }) => !banned.has(id));
  all.sort((a, b) => b.logprob - a.logprob);
  const best = all.slice(0, sequence.numCandidates);
  return { ids: best.map(({ id }) => id), logprobs: best.map(({ logprob }) => logprob) };
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
  copiedBlocks = 0;

  constructor(private readonly options: FakeRunnerOptions) {
    this.slots = new Int32Array(options.numBlocks * options.blockSize);
  }

  runStep(batch: readonly ScheduledSequence[], copies: readonly BlockCopy[] = []): (StepOutput | undefined)[] {
    this.before?.(batch);
    const { blockSize } = this.options;
    const sources = copies.map(({ from, tokens }) => this.slots.slice(from * blockSize, from * blockSize + tokens));
    copies.forEach(({ to }, i) => this.slots.set(sources[i]!, to * blockSize));
    this.copiedBlocks += copies.length;
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
    if (sequence.numCandidates > 0) return { candidates: rank(state, sequence) };
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

/** A request for the fake runner as the engine takes it. */
export function fakeGroup(id: number, request: FakeRequest): SequenceGroup {
  const sequence = fakeSequence(id, request);
  return sequence.params.numBeams > 1 ? new BeamSearch(sequence) : sequence;
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
    detokenizer: () => new LetterDetokenizer(),
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

interface Line {
  sequence: Sequence;
  state: number;
  sum: number;
}

/** The answers of a beam search that has the machine to itself, from the definition; scores as the sums divided by the penalty. */
export function aloneBeams(request: FakeRequest, maxContext: number): { tokenIds: number[]; score: number }[] {
  const first = fakeSequence(-1, request);
  const { numBeams, lengthPenalty, earlyStopping, maxNewTokens } = first.params;
  const most = Math.min(maxNewTokens, maxContext - request.prompt.length);
  const start = request.prompt.reduce(mix, seedState(first));
  let lines: Line[] = [{ sequence: first, state: start, sum: 0 }];
  const done: { tokenIds: number[]; score: number }[] = [];
  for (let length = 1; ; length++) {
    const candidates = lines
      .flatMap((line) => {
        const { ids, logprobs } = rank(line.state, line.sequence);
        return ids.map((id, i) => ({ line, id, sum: Math.fround(line.sum + logprobs[i]!) }));
      })
      .sort((a, b) => b.sum - a.sum)
      .slice(0, first.numCandidates);
    const next: Line[] = [];
    candidates.forEach(({ line, id, sum }, place) => {
      const tokens = [...line.sequence.tokens.slice(request.prompt.length), id];
      const text = tokens.map(letter).join('');
      const stops = first.params.stop.some((stop) => text.includes(stop));
      if (first.isEos(id) || stops || length >= most) {
        if (place < numBeams) done.push({ tokenIds: tokens, score: sum / length ** lengthPenalty });
      } else if (next.length < numBeams) {
        const sequence = line.sequence.fork();
        sequence.extend(id);
        next.push({ sequence, state: mix(line.state, id), sum });
      }
    });
    done.sort((a, b) => b.score - a.score);
    done.splice(numBeams);
    const hopeful = earlyStopping === 'never' && lengthPenalty > 0 ? most : length;
    const isFull = done.length === numBeams;
    const worst = done[done.length - 1]?.score ?? -Infinity;
    if (next.length === 0) return done;
    if (isFull && (earlyStopping === true || next[0]!.sum / hopeful ** lengthPenalty <= worst)) return done;
    lines = next;
  }
}
