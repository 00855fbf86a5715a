// Who runs, in which step, with how many tokens.
import { describe, expect, it } from 'vitest';
import { BlockManager } from '../lib/engine/scheduling/kv-cache.js';
import { Scheduler, type ScheduledSequence } from '../lib/engine/scheduling/scheduler.js';
import { fakeSequence } from './support/fake-runner.js';
import type { Sequence } from '../lib/engine/scheduling/sequence.js';

const range = (n: number, from = 1): number[] => Array.from({ length: n }, (_, i) => from + i);

function setup(numBlocks: number, maxBatchSize: number, maxStepTokens: number) {
  const blocks = new BlockManager(numBlocks, 4);
  const scheduler = new Scheduler(blocks, { maxBatchSize, maxStepTokens });
  let id = 0;
  const add = (length: number, from = 100 * id): Sequence => {
    const sequence = fakeSequence(id++, { prompt: range(length, from) });
    scheduler.add(sequence);
    return sequence;
  };
  return { blocks, scheduler, add };
}

/** Does what the engine does after a step in which every sampled token is a 1. */
function finishStep(blocks: BlockManager, step: ScheduledSequence[]): void {
  for (const { sequence, start, count, sample } of step) {
    sequence.numComputed = start + count;
    blocks.commit(sequence, start + count, start);
    if (sample) sequence.append(1, undefined, 1000, 0);
  }
}

const shape = (step: ScheduledSequence[]): [number, number, number, boolean][] =>
  step.map(({ sequence, start, count, sample }) => [sequence.id, start, count, sample]);

describe('Scheduler', () => {
  it('cuts a long prompt into chunks and samples only at its end', () => {
    const { blocks, scheduler, add } = setup(20, 2, 8);
    add(19);
    const seen = [];
    for (let i = 0; i < 4; i++) {
      const step = scheduler.schedule().batch;
      seen.push(...shape(step));
      finishStep(blocks, step);
    }
    expect(seen).toEqual([
      [0, 0, 8, false],
      [0, 8, 8, false],
      [0, 16, 3, true],
      [0, 19, 1, true],
    ]);
  });

  it('lets decoding sequences go on while a long prompt is prefilled', () => {
    const { blocks, scheduler, add } = setup(40, 4, 8);
    add(3);
    finishStep(blocks, scheduler.schedule().batch);
    add(30);
    for (let i = 0; i < 3; i++) {
      const step = scheduler.schedule().batch;
      expect(shape(step)[0]).toEqual([0, 3 + i, 1, true]);
      expect(shape(step)[1]).toEqual([1, 7 * i, 7, false]);
      finishStep(blocks, step);
    }
  });

  it('advances a prefill by at least one token a step however many sequences decode', () => {
    const { blocks, scheduler, add } = setup(60, 4, 1);
    for (let i = 0; i < 3; i++) add(1);
    for (let i = 0; i < 4; i++) finishStep(blocks, scheduler.schedule().batch);
    add(6);
    const step = scheduler.schedule().batch;
    expect(step).toHaveLength(4);
    expect(shape(step)[3]).toEqual([3, 0, 2, false]);
  });

  it('admits in order of arrival: a big request that does not fit is not overtaken by a small one', () => {
    const { blocks, scheduler, add } = setup(6, 4, 100);
    add(15); // 4 blocks
    finishStep(blocks, scheduler.schedule().batch);
    add(12); // 3 blocks: must wait
    add(1);
    const step = scheduler.schedule().batch;
    expect(step.map(({ sequence }) => sequence.id)).toEqual([0]);
    expect(scheduler.numWaiting).toBe(2);
  });

  it('runs at most maxBatchSize sequences', () => {
    const { scheduler, add } = setup(60, 3, 100);
    for (let i = 0; i < 5; i++) add(2);
    expect(scheduler.schedule().batch).toHaveLength(3);
  });

  it('preempts the youngest when the pool is full, keeps its place in the queue, and recomputes it with its answer', () => {
    const { blocks, scheduler, add } = setup(6, 4, 100);
    const [a, b] = [add(7), add(7)];
    finishStep(blocks, scheduler.schedule().batch);
    while (scheduler.preemptions === 0) finishStep(blocks, scheduler.schedule().batch);
    expect([a.preemptions, b.preemptions]).toEqual([0, 1]);
    expect(b.blockTable).toEqual([]);
    expect(b.numComputed).toBe(0);
    const tokens = [...b.tokens];
    scheduler.remove(a);
    const step = scheduler.schedule().batch;
    expect(step.map(({ sequence }) => sequence)).toEqual([b]);
    expect(b.tokens).toEqual(tokens);
    expect(step[0]!.start + step[0]!.count).toBe(tokens.length); // prompt and answer, less what the prefix cache still had
  });

  it('frees everything a removed sequence held', () => {
    const { blocks, scheduler, add } = setup(6, 4, 100);
    const a = add(9);
    scheduler.schedule();
    scheduler.remove(a);
    expect(blocks.inUse).toBe(0);
    expect(scheduler.schedule().batch).toEqual([]);
  });
});
