// Who runs in the next step. One step carries both kinds of work: each decoding sequence takes one token, the rest of the
// token budget goes to prefill, oldest first, long prompts in chunks, what an encoder reads in one piece. Admission is strictly
// first come, first served, so nobody starves. When the pool is full, the youngest running group gives its blocks back and later
// recomputes prompt and answer; the kernels' results do not depend on chunking, so it continues as if nothing had happened.

import { QFormerError } from '../../errors.js';
import type { SequenceGroup } from './group.js';
import type { BlockCopy, BlockManager } from './kv-cache.js';
import type { Sequence } from './sequence.js';

/** A sequence's part of a step: tokens [start, start + count) are computed; `sample` where they reach its end. */
export interface ScheduledSequence {
  sequence: Sequence;
  start: number;
  count: number;
  sample: boolean;
}

/** The work of one step. */
export interface ScheduledStep {
  batch: ScheduledSequence[];
  /** Blocks to copy before anything is written. */
  copies: BlockCopy[];
}

export interface SchedulerOptions {
  maxBatchSize: number;
  /** Tokens of one step; more are used where all that decode and one more need them, so that prefill always advances. */
  maxStepTokens: number;
}

/** Waiting and running groups. */
export class Scheduler {
  readonly #waiting: SequenceGroup[] = [];
  readonly #running: SequenceGroup[] = [];
  readonly #budget: number;
  /** Times a group lost its blocks. */
  preemptions = 0;

  constructor(
    private readonly blocks: BlockManager,
    private readonly options: SchedulerOptions,
  ) {
    this.#budget = Math.max(options.maxStepTokens, options.maxBatchSize + 1);
  }

  get numWaiting(): number {
    return this.#waiting.length;
  }

  get numRunning(): number {
    return this.#running.length;
  }

  /** All groups, running ones first. */
  get groups(): SequenceGroup[] {
    return [...this.#running, ...this.#waiting];
  }

  /** Queues a group. */
  add(group: SequenceGroup): void {
    this.#waiting.push(group);
  }

  /** Forgets a group and frees its blocks. */
  remove(group: SequenceGroup): void {
    for (const queue of [this.#running, this.#waiting]) {
      const index = queue.indexOf(group);
      if (index >= 0) queue.splice(index, 1);
    }
    this.#release(group);
  }

  /** Chooses the next step's work; empty only when nothing is queued. `onStart` hears of each group that begins to run. */
  schedule(onStart?: (group: SequenceGroup, cachedTokens: number) => void): ScheduledStep {
    const step: ScheduledStep = { batch: [], copies: [] };
    const ready = this.#running.map((group) => this.#ready(group));
    const decoding = ready.flat().filter((sequence) => sequence.numPending === 1).length;
    let budget = Math.max(this.#budget, decoding + 1) - decoding;
    const full = this.preemptions;
    for (let i = 0; i < this.#running.length; i++) {
      const work = planWork(ready[i]!, budget);
      if (work.length === 0) continue;
      const copies = this.#makeRoom(this.#running[i]!, work);
      if (copies === undefined) break;
      for (const { sequence, count } of work) if (sequence.numPending > 1) budget -= count;
      step.batch.push(...work);
      step.copies.push(...copies);
    }
    // A step that had to preempt admits nobody: the group just stopped would come straight back.
    if (this.preemptions === full) this.#admit(step.batch, budget, onStart);
    if (step.batch.length === 0 && this.#waiting.length > 0 && this.#running.length === 0) {
      throw new QFormerError('INTERNAL', 'no waiting request fits an empty KV pool');
    }
    return step;
  }

  #admit(
    batch: ScheduledSequence[],
    budget: number,
    onStart?: (group: SequenceGroup, cachedTokens: number) => void,
  ): void {
    while (budget > 0 && this.#waiting.length > 0) {
      const group = this.#waiting[0]!;
      const width = this.#running.reduce((sum, running) => sum + running.width, 0);
      // One that is wider than the batch runs alone.
      if (this.#running.length > 0 && width + group.width > this.options.maxBatchSize) return;
      const first = group.sequences[0]!;
      // One block of headroom for each running sequence: admitting into the last blocks would only preempt at once.
      const cached = this.#start(group, width + this.#blocksOfOthers(group));
      if (cached < 0) return;
      this.#waiting.shift();
      this.#running.push(group);
      onStart?.(group, cached);
      const count = Math.min(first.numPending, budget);
      budget -= count + (group.encoder?.numPending ?? 0);
      batch.push(entry(first, count));
    }
  }

  /** Gives a group's first sequence and encoder their blocks; answers the prompt tokens found in the cache, or -1 without room. */
  #start({ sequences, encoder }: SequenceGroup, headroom: number): number {
    const first = sequences[0]!;
    if (encoder !== undefined) {
      const found = this.blocks.startWhole(encoder, headroom + this.blocks.blocksFor(first.tokens.length));
      if (found < 0) return -1;
      encoder.computed = found > 0;
    }
    const cached = this.blocks.start(first, headroom);
    if (cached >= 0) first.numComputed = cached;
    return encoder === undefined ? cached : encoder.tokens.length - encoder.numPending;
  }

  #release({ sequences, encoder }: SequenceGroup): void {
    for (const sequence of sequences) this.blocks.release(sequence);
    if (encoder === undefined) return;
    this.blocks.release(encoder);
    encoder.computed = false;
  }

  /** Blocks that the sequences of a waiting group need beside those of the first one. */
  #blocksOfOthers({ sequences }: SequenceGroup): number {
    const shared = Math.floor(commonLength(sequences) / this.blocks.blockSize);
    return sequences.slice(1).reduce((sum, { tokens }) => sum + this.blocks.blocksFor(tokens.length) - shared, 0);
  }

  /** The sequences of a running group that can be computed: after a preemption the first one alone, until it has what they share. */
  #ready({ sequences }: SequenceGroup): readonly Sequence[] {
    const [first, ...others] = sequences as [Sequence, ...Sequence[]];
    const waiting = others.filter(({ blockTable }) => blockTable.length === 0);
    if (waiting.length === 0) return sequences;
    const shared = commonLength(sequences);
    if (first.numComputed < shared) return [first];
    for (const sequence of waiting) {
      this.blocks.fork(first, sequence, shared);
      sequence.numComputed = shared;
    }
    return sequences;
  }

  /** Room for a group's work, at the cost of younger groups; undefined when the group itself had to give way. */
  #makeRoom(group: SequenceGroup, work: readonly ScheduledSequence[]): BlockCopy[] | undefined {
    const writes = work.map(({ sequence, start, count }) => ({ owner: sequence, start, end: start + count }));
    for (;;) {
      const copies = this.blocks.reserve(writes);
      if (copies !== undefined) return copies;
      const victim = this.#running.pop()!;
      this.#preempt(victim);
      if (victim === group) return undefined;
    }
  }

  #preempt(group: SequenceGroup): void {
    this.#release(group);
    for (const sequence of group.sequences) sequence.numComputed = 0;
    group.preemptions++;
    this.preemptions++;
    this.#waiting.unshift(group);
  }
}

/** What `sequences` do in a step: one token each that decodes, and `budget` tokens of the others. */
function planWork(sequences: readonly Sequence[], budget: number): ScheduledSequence[] {
  const work: ScheduledSequence[] = [];
  let left = budget;
  for (const sequence of sequences) {
    const isDecode = sequence.numPending === 1;
    const count = isDecode ? 1 : Math.min(sequence.numPending, left);
    if (!isDecode) left -= count;
    if (count > 0) work.push(entry(sequence, count));
  }
  return work;
}

function entry(sequence: Sequence, count: number): ScheduledSequence {
  return { sequence, start: sequence.numComputed, count, sample: count === sequence.numPending };
}

/** Tokens that all sequences begin with. */
function commonLength(sequences: readonly Sequence[]): number {
  const [first, ...others] = sequences as [Sequence, ...Sequence[]];
  const differs = (id: number, at: number): boolean => others.some(({ tokens }) => tokens[at] !== id);
  const end = first.tokens.findIndex(differs);
  return end < 0 ? first.tokens.length : end;
}
