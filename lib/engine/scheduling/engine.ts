// One engine: schedule → run → append → report, one step at a time, plain synchronous code. It knows tokens and blocks; the
// Runner knows tensors. An error belongs to its request; where a step fails and nobody is to blame, the requests of that
// step fail and the engine goes on. A device fault poisons it: nothing on that device can be trusted any more.

import { QFormerError, isQFormerError } from '../../errors.js';
import type { SequenceGroup, StepOutput } from './group.js';
import { BlockManager, type BlockCopy } from './kv-cache.js';
import type { Delta, EngineResult, FinishReason } from '../protocol.js';
import { Scheduler, type ScheduledSequence } from './scheduler.js';
import type { Sequence } from './sequence.js';

/** Executes the chosen work. */
export interface Runner {
  /** Makes `copies`, then computes: one entry per scheduled sequence, in order: an output where `sample` is set, an error, or undefined. May throw. */
  runStep(batch: readonly ScheduledSequence[], copies: readonly BlockCopy[]): (StepOutput | undefined)[];
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
  readonly #groups = new Map<number, SequenceGroup>();
  readonly #now: () => number;
  #events: EngineEvent[] = [];
  #poison: QFormerError | undefined;
  readonly #counters = { steps: 0, promptTokens: 0, generatedTokens: 0, cachedTokens: 0 };

  constructor(
    private readonly runner: Runner,
    private readonly limits: EngineLimits,
  ) {
    this.blocks = new BlockManager(limits.numBlocks, limits.blockSize, limits.prefixCache);
    this.#scheduler = new Scheduler(this.blocks, limits);
    this.maxContext = Math.min(limits.maxPositions, limits.numBlocks * limits.blockSize);
    this.#now = limits.now ?? (() => performance.now());
  }

  /** Whether a call to step() would do something. */
  get hasWork(): boolean {
    return this.#groups.size > 0 || this.#events.length > 0;
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
  add(group: SequenceGroup): void {
    if (this.#poison !== undefined) throw this.#poison;
    const { id, promptLength, inputLength, answerTokens } = group;
    if (promptLength === 0 || inputLength === 0) throw new QFormerError('INVALID_ARGUMENT', 'the prompt is empty');
    const maxContext = this.#contextOf(group);
    if (promptLength + answerTokens > maxContext || inputLength >= this.maxContext) {
      const whose = group.width === 1 ? '' : ` of ${group.width} sequences`;
      throw new QFormerError(
        'INVALID_ARGUMENT',
        `the prompt has ${inputLength} tokens; at most ${maxContext - answerTokens} leave room for an answer in a context of ${maxContext}${whose}`,
        { promptTokens: inputLength, maxContext },
      );
    }
    if (this.#groups.has(id)) throw new QFormerError('INTERNAL', `request ${id} exists already`);
    this.#groups.set(id, group);
    this.#scheduler.add(group);
    this.#counters.promptTokens += inputLength;
  }

  /** Ends a request with finishReason 'abort'; unknown ids are ignored. The event comes with the next step(). */
  abort(id: number): void {
    const group = this.#groups.get(id);
    if (group === undefined) return;
    const delta = group.flush();
    if (delta !== undefined) this.#events.push({ type: 'delta', id, ...delta });
    this.#finish(group, 'abort');
  }

  /**
   * Prompt and answer of one of a group's sequences, such that all of them fit the pool: they share the prompt's full blocks and
   * what the encoder read.
   */
  #contextOf({ width, promptLength, encoder }: SequenceGroup): number {
    const { maxPositions, blockSize } = this.limits;
    const numBlocks =
      this.limits.numBlocks - (encoder === undefined ? 0 : this.blocks.blocksFor(encoder.tokens.length));
    const shared = width === 1 ? 0 : Math.floor(promptLength / blockSize);
    return Math.min(maxPositions, (shared + Math.floor(Math.max(0, numBlocks - shared) / width)) * blockSize);
  }

  /** Runs one step and answers all events since the last call. Never throws for a request's sake. */
  step(): EngineEvent[] {
    if (this.#groups.size > 0) this.#advance();
    const events = this.#events;
    this.#events = [];
    return events;
  }

  #advance(): void {
    let batch: ScheduledSequence[] = [];
    try {
      const step = this.#scheduler.schedule((group, cached) => this.#started(group, cached));
      batch = step.batch;
      const outputs = this.runner.runStep(batch, step.copies);
      this.#counters.steps++;
      this.#accept(batch, outputs);
    } catch (error) {
      this.#stepFailed(batch, error);
    }
  }

  #started(group: SequenceGroup, cached: number): void {
    if (group.preemptions === 0) this.#counters.cachedTokens += cached;
    group.markStarted(this.#now(), cached);
  }

  #accept(batch: readonly ScheduledSequence[], outputs: readonly (StepOutput | undefined)[]): void {
    const sampled = new Map<SequenceGroup, Map<Sequence, StepOutput>>();
    batch.forEach((item, i) => {
      const { sequence, sample } = item;
      const group = this.#groups.get(sequence.id);
      if (group === undefined) return; // failed with another of its sequences
      const output = this.#compute(item, outputs[i]);
      if (output !== undefined && 'error' in output) return this.#fail(group, output.error);
      if (output === undefined) {
        if (sample) this.#fail(group, new QFormerError('INTERNAL', 'the runner returned no token'));
        return;
      }
      const ofGroup = sampled.get(group) ?? new Map<Sequence, StepOutput>();
      sampled.set(group, ofGroup.set(sequence, output));
    });
    for (const [group, ofGroup] of sampled) if (this.#groups.has(group.id)) this.#advanceGroup(group, ofGroup);
  }

  /** Takes note that a sequence's part of the step is in the cache, unless it failed. */
  #compute({ sequence, start, count }: ScheduledSequence, output: StepOutput | undefined): StepOutput | undefined {
    if (output !== undefined && 'error' in output) return output;
    const { encoder } = sequence;
    if (encoder !== undefined && !encoder.computed) {
      encoder.computed = true;
      this.blocks.commitWhole(encoder);
    }
    sequence.numComputed = start + count;
    this.blocks.commit(sequence, start + count, start);
    return output;
  }

  #advanceGroup(group: SequenceGroup, outputs: ReadonlyMap<Sequence, StepOutput>): void {
    this.#counters.generatedTokens += outputs.size;
    try {
      const step = { blocks: this.blocks, maxTokens: this.#contextOf(group), now: this.#now() };
      const { delta, finished } = group.accept(outputs, step);
      if (delta !== undefined) this.#events.push({ type: 'delta', id: group.id, ...delta });
      if (finished !== undefined) this.#finish(group, finished);
    } catch (error) {
      this.#fail(group, error);
    }
  }

  #finish(group: SequenceGroup, reason: FinishReason): void {
    this.#forget(group);
    this.#events.push({ type: 'end', id: group.id, result: group.result(reason, this.#now()) });
  }

  #fail(group: SequenceGroup, error: unknown): void {
    this.#forget(group);
    this.#events.push({ type: 'error', id: group.id, error });
  }

  #forget(group: SequenceGroup): void {
    this.#groups.delete(group.id);
    this.#scheduler.remove(group);
  }

  #stepFailed(batch: readonly ScheduledSequence[], error: unknown): void {
    const isFault = isQFormerError(error) && error.code === 'CUDA';
    if (isFault) this.#poison = error;
    // A scheduler that fails has no batch to blame: everything queued goes, or the same failure would return for ever.
    const isBlamed = new Set(batch.map(({ sequence }) => sequence.id));
    for (const group of this.#scheduler.groups) {
      if (isFault || batch.length === 0 || isBlamed.has(group.id)) this.#fail(group, error);
    }
  }
}
