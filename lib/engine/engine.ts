// One engine: schedule → run → append → report, one step at a time, plain synchronous code. It knows tokens and blocks; the
// Runner knows tensors. An error belongs to its request; where a step fails and nobody is to blame, the requests of that
// step fail and the engine goes on. A device fault poisons it: nothing on that device can be trusted any more.

import { QFormerError, isQFormerError } from '../errors.js';
import { BlockManager } from './kv-cache.js';
import type { Delta, EngineResult, FinishReason, TokenLogprob } from './protocol.js';
import { Scheduler, type ScheduledSequence } from './scheduler.js';
import type { Sequence } from './sequence.js';

/** What a step produced for one scheduled sequence. */
export type StepOutput = { tokenId: number; logprob?: TokenLogprob } | { error: unknown };

/** Executes the chosen work. */
export interface Runner {
  /** One entry per scheduled sequence, in order: an output where `sample` is set, an error, or undefined. May throw. */
  runStep(batch: readonly ScheduledSequence[]): (StepOutput | undefined)[];
}

/** What happened to a request. */
export type EngineEvent =
  | ({ type: 'delta'; id: number } & Delta)
  | { type: 'end'; id: number; result: EngineResult }
  | { type: 'error'; id: number; error: unknown };

export interface EngineLimits {
  numBlocks: number;
  blockSize: number;
  maxBatchSize: number;
  maxStepTokens: number;
  /** Positions the model knows. */
  maxPositions: number;
  prefixCache?: boolean;
  /** Clock, ms. Default performance.now. */
  now?: () => number;
}

/** Continuous batching of requests over one runner. */
export class Engine {
  /** Prompt and answer together, tokens. */
  readonly maxContext: number;
  readonly blocks: BlockManager;
  readonly #scheduler: Scheduler;
  readonly #sequences = new Map<number, Sequence>();
  readonly #now: () => number;
  #events: EngineEvent[] = [];
  #poison: QFormerError | undefined;
  readonly #counters = { steps: 0, promptTokens: 0, generatedTokens: 0, cachedTokens: 0 };

  constructor(
    private readonly runner: Runner,
    limits: EngineLimits,
  ) {
    this.blocks = new BlockManager(limits.numBlocks, limits.blockSize, limits.prefixCache);
    this.#scheduler = new Scheduler(this.blocks, limits);
    this.maxContext = Math.min(limits.maxPositions, limits.numBlocks * limits.blockSize);
    this.#now = limits.now ?? (() => performance.now());
  }

  /** Whether a call to step() would do something. */
  get hasWork(): boolean {
    return this.#sequences.size > 0 || this.#events.length > 0;
  }

  /** The device fault that ended this engine, if any. */
  get poison(): QFormerError | undefined {
    return this.#poison;
  }

  /** Counters since the start. */
  get stats(): {
    steps: number;
    promptTokens: number;
    generatedTokens: number;
    cachedTokens: number;
    preemptions: number;
    waiting: number;
    running: number;
  } {
    const { preemptions, numWaiting: waiting, numRunning: running } = this.#scheduler;
    return { ...this.#counters, preemptions, waiting, running };
  }

  /** Queues a request. Throws INVALID_ARGUMENT where it can never run, the device fault where the engine is poisoned. */
  add(sequence: Sequence): void {
    if (this.#poison !== undefined) throw this.#poison;
    if (sequence.promptLength === 0) throw new QFormerError('INVALID_ARGUMENT', 'the prompt is empty');
    if (sequence.promptLength >= this.maxContext) {
      throw new QFormerError(
        'INVALID_ARGUMENT',
        `the prompt has ${sequence.promptLength} tokens; at most ${this.maxContext - 1} leave room for an answer in a context of ${this.maxContext}`,
        { promptTokens: sequence.promptLength, maxContext: this.maxContext },
      );
    }
    if (this.#sequences.has(sequence.id)) throw new QFormerError('INTERNAL', `request ${sequence.id} exists already`);
    this.#sequences.set(sequence.id, sequence);
    this.#scheduler.add(sequence);
    this.#counters.promptTokens += sequence.promptLength;
  }

  /** Ends a request with finishReason 'abort'; unknown ids are ignored. The event comes with the next step(). */
  abort(id: number): void {
    const sequence = this.#sequences.get(id);
    if (sequence === undefined) return;
    const text = sequence.flush();
    if (text !== '') this.#events.push({ type: 'delta', id, text, tokenIds: [] });
    this.#finish(sequence, 'abort');
  }

  /** Runs one step and answers all events since the last call. Never throws for a request's sake. */
  step(): EngineEvent[] {
    if (this.#sequences.size > 0) this.#advance();
    const events = this.#events;
    this.#events = [];
    return events;
  }

  #advance(): void {
    let batch: ScheduledSequence[] = [];
    try {
      batch = this.#scheduler.schedule((sequence, cached) => this.#started(sequence, cached));
      const outputs = this.runner.runStep(batch);
      this.#counters.steps++;
      batch.forEach((item, i) => this.#accept(item, outputs[i]));
    } catch (error) {
      this.#stepFailed(batch, error);
    }
  }

  #started(sequence: Sequence, cached: number): void {
    if (sequence.preemptions === 0) this.#counters.cachedTokens += cached;
    sequence.markStarted(this.#now(), cached);
  }

  #accept({ sequence, start, count, sample }: ScheduledSequence, output: StepOutput | undefined): void {
    if (output !== undefined && 'error' in output) return this.#fail(sequence, output.error);
    sequence.numComputed = start + count;
    this.blocks.commit(sequence, start + count, start);
    if (!sample) return;
    if (output === undefined) return this.#fail(sequence, new QFormerError('INTERNAL', 'the runner returned no token'));
    this.#counters.generatedTokens++;
    const { delta, finished } = sequence.append(output.tokenId, output.logprob, this.maxContext, this.#now());
    this.#events.push({ type: 'delta', id: sequence.id, ...delta });
    if (finished !== undefined) this.#finish(sequence, finished);
  }

  #finish(sequence: Sequence, reason: FinishReason): void {
    this.#forget(sequence);
    this.#events.push({ type: 'end', id: sequence.id, result: sequence.result(reason, this.#now()) });
  }

  #fail(sequence: Sequence, error: unknown): void {
    this.#forget(sequence);
    this.#events.push({ type: 'error', id: sequence.id, error });
  }

  #forget(sequence: Sequence): void {
    this.#sequences.delete(sequence.id);
    this.#scheduler.remove(sequence);
  }

  #stepFailed(batch: readonly ScheduledSequence[], error: unknown): void {
    const isFault = isQFormerError(error) && error.code === 'CUDA';
    if (isFault) this.#poison = error;
    // A scheduler that fails has no batch to blame: everything queued goes, or the same failure would return for ever.
    const victims = isFault || batch.length === 0 ? this.#scheduler.sequences : batch.map(({ sequence }) => sequence);
    for (const sequence of victims) if (this.#sequences.has(sequence.id)) this.#fail(sequence, error);
  }
}
