// Who runs in the next step. One step carries both kinds of work: each decoding sequence takes one token, the rest of the
// token budget goes to prefill, oldest first, long prompts in chunks. Admission is strictly first come, first served, so
// nobody starves. When the pool is full, the youngest running sequence gives its blocks back and later recomputes prompt
// and answer; the kernels' results do not depend on chunking, so it continues as if nothing had happened.

import { QFormerError } from '../errors.js';
import type { BlockManager } from './kv-cache.js';
import type { Sequence } from './sequence.js';

/** A sequence's part of a step: tokens [start, start + count) are computed; `sample` where they reach its end. */
export interface ScheduledSequence {
  sequence: Sequence;
  start: number;
  count: number;
  sample: boolean;
}

export interface SchedulerOptions {
  maxBatchSize: number;
  /** Tokens of one step; at least maxBatchSize + 1 are used, so that prefill always advances. */
  maxStepTokens: number;
}

/** Waiting and running sequences. */
export class Scheduler {
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];
  readonly #budget: number;
  #arrivals = 0;
  /** Times a sequence lost its blocks. */
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

  /** All sequences, running ones first. */
  get sequences(): Sequence[] {
    return [...this.#running, ...this.#waiting];
  }

  /** Queues a sequence. */
  add(sequence: Sequence): void {
    sequence.arrivalOrder = this.#arrivals++;
    this.#waiting.push(sequence);
  }

  /** Forgets a sequence and frees its blocks. */
  remove(sequence: Sequence): void {
    for (const queue of [this.#running, this.#waiting]) {
      const index = queue.indexOf(sequence);
      if (index >= 0) queue.splice(index, 1);
    }
    this.blocks.release(sequence);
  }

  /** Chooses the next step's work; empty only when nothing is queued. `onStart` hears of each sequence that begins to run. */
  schedule(onStart?: (sequence: Sequence, cachedTokens: number) => void): ScheduledSequence[] {
    const step: ScheduledSequence[] = [];
    const decoding = this.#running.filter((sequence) => sequence.numPending === 1).length;
    let budget = this.#budget - decoding;
    const full = this.preemptions;
    for (let i = 0; i < this.#running.length; i++) {
      const sequence = this.#running[i]!;
      const isDecode = sequence.numPending === 1;
      const count = isDecode ? 1 : Math.min(sequence.numPending, budget);
      if (count === 0) continue;
      if (!this.#makeRoom(sequence, sequence.numComputed + count)) break;
      if (!isDecode) budget -= count;
      step.push(entry(sequence, count));
    }
    // A step that had to preempt admits nobody: the sequence just stopped would come straight back.
    if (this.preemptions === full) this.#admit(step, budget, onStart);
    if (step.length === 0 && this.#waiting.length > 0 && this.#running.length === 0) {
      throw new QFormerError('INTERNAL', 'no waiting request fits an empty KV pool');
    }
    return step;
  }

  #admit(
    step: ScheduledSequence[],
    budget: number,
    onStart?: (sequence: Sequence, cachedTokens: number) => void,
  ): void {
    while (budget > 0 && this.#waiting.length > 0 && this.#running.length < this.options.maxBatchSize) {
      const sequence = this.#waiting[0]!;
      // One block of headroom for each running sequence: admitting into the last blocks would only preempt at once.
      const cached = this.blocks.start(sequence, this.#running.length);
      if (cached < 0) return;
      this.#waiting.shift();
      this.#running.push(sequence);
      sequence.numComputed = cached;
      onStart?.(sequence, cached);
      const count = Math.min(sequence.numPending, budget);
      budget -= count;
      step.push(entry(sequence, count));
    }
  }

  /** Room for `tokens` tokens, at the cost of younger sequences; false when the sequence itself had to give way. */
  #makeRoom(sequence: Sequence, tokens: number): boolean {
    while (!this.blocks.grow(sequence, tokens)) {
      const victim = this.#running.pop()!;
      this.#preempt(victim);
      if (victim === sequence) return false;
    }
    return true;
  }

  #preempt(sequence: Sequence): void {
    this.blocks.release(sequence);
    sequence.numComputed = 0;
    sequence.preemptions++;
    this.preemptions++;
    this.#waiting.unshift(sequence);
  }
}

function entry(sequence: Sequence, count: number): ScheduledSequence {
  return { sequence, start: sequence.numComputed, count, sample: count === sequence.numPending };
}
