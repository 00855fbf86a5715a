// The engine over a runner that needs no tensors but notices every wrong block: continuous batching, preemption, prefix
// reuse, aborts and failures must never change the answer of any other request, and no block may be lost.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Engine, type EngineEvent, type EngineLimits } from '../lib/engine/scheduling/engine.js';
import type { EngineResult } from '../lib/engine/protocol.js';
import { QFormerError } from '../lib/errors.js';
import { FakeRunner, aloneTokens, fakeSequence, type FakeRequest } from './support/fake-runner.js';

const range = (n: number, from = 1): number[] => Array.from({ length: n }, (_, i) => from + (i % 40));

const SMALL: EngineLimits = { numBlocks: 12, blockSize: 4, maxBatchSize: 5, maxStepTokens: 16, maxPositions: 1000 };

function setup(limits: Partial<EngineLimits> = {}) {
  const all = { ...SMALL, ...limits };
  const runner = new FakeRunner(all);
  return { runner, engine: new Engine(runner, all) };
}

interface Outcome {
  results: Map<number, EngineResult>;
  errors: Map<number, unknown>;
  streamed: Map<number, { text: string; ids: number[] }>;
}

function collect(outcome: Outcome, events: EngineEvent[]): void {
  for (const event of events) {
    if (event.type === 'end') outcome.results.set(event.id, event.result);
    else if (event.type === 'error') outcome.errors.set(event.id, event.error);
    else {
      const so = outcome.streamed.get(event.id) ?? { text: '', ids: [] };
      outcome.streamed.set(event.id, { text: so.text + event.text, ids: [...so.ids, ...event.tokenIds] });
    }
  }
}

function drain(engine: Engine, atStep?: (step: number) => void): Outcome {
  const outcome: Outcome = { results: new Map(), errors: new Map(), streamed: new Map() };
  for (let step = 0; engine.hasWork; step++) {
    expect(step).toBeLessThan(100_000);
    atStep?.(step);
    collect(outcome, engine.step());
  }
  return outcome;
}

const request = fc.record<FakeRequest & { params: NonNullable<FakeRequest['params']> }>({
  // Few different beginnings, so that prefixes are shared; lengths across several blocks.
  prompt: fc
    .tuple(fc.nat(2), fc.integer({ min: 1, max: 22 }), fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 4 }))
    .map(([family, length, tail]) => [...range(length, 1 + family), ...tail]),
  images: fc.subarray(['cat', 'dog'], { maxLength: 1 }),
  instructionIds: fc.array(fc.nat(2), { maxLength: 1 }),
  params: fc.record({
    maxNewTokens: fc.integer({ min: 1, max: 30 }),
    minNewTokens: fc.constant(0),
    seed: fc.nat(3),
    stop: fc.subarray(['ab', 'q', 'xyz']),
    noRepeatNgramSize: fc.nat(3),
  }),
});

const limits = fc.record({
  numBlocks: fc.integer({ min: 8, max: 30 }),
  blockSize: fc.integer({ min: 1, max: 8 }),
  maxBatchSize: fc.integer({ min: 1, max: 8 }),
  maxStepTokens: fc.integer({ min: 1, max: 40 }),
  maxPositions: fc.integer({ min: 30, max: 80 }),
  prefixCache: fc.boolean(),
});

describe('any mix of requests over any small pool', () => {
  it('gives each request what it gets alone, and gives all blocks back', () => {
    const seen = { requests: 0, preemptions: 0, cached: 0, aborted: 0, refused: 0, batched: 0 };
    const arrivals = fc.array(fc.record({ request, step: fc.nat(30), abortAt: fc.option(fc.nat(40), { freq: 4 }) }), {
      minLength: 2,
      maxLength: 20,
      size: 'max',
    });
    fc.assert(
      fc.property(limits, arrivals, (all, list) => {
        const runner = new FakeRunner(all);
        const engine = new Engine(runner, all);
        const refused = new Set<number>();
        let pendingArrivals = list.length;
        const outcome: Outcome = { results: new Map(), errors: new Map(), streamed: new Map() };
        for (let step = 0; engine.hasWork || pendingArrivals > 0; step++) {
          list.forEach((arrival, id) => {
            if (arrival.step === step) {
              pendingArrivals--;
              try {
                engine.add(fakeSequence(id, arrival.request));
              } catch (error) {
                expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
                expect(arrival.request.prompt.length).toBeGreaterThanOrEqual(engine.maxContext);
                refused.add(id);
              }
            }
            if (arrival.abortAt === step) engine.abort(id);
          });
          collect(outcome, engine.step());
        }
        expect(engine.blocks.inUse).toBe(0);
        expect(outcome.errors.size).toBe(0);
        list.forEach((arrival, id) => {
          if (refused.has(id)) return void seen.refused++;
          const result = outcome.results.get(id)!;
          const alone = aloneTokens(arrival.request, engine.maxContext);
          if (result.finishReason === 'abort') {
            seen.aborted++;
            expect(result.tokenIds).toEqual(alone.slice(0, result.tokenIds.length));
          } else {
            expect(result.tokenIds).toEqual(alone);
          }
          const streamed = outcome.streamed.get(id) ?? { text: '', ids: [] };
          expect(streamed).toEqual({ text: result.text, ids: result.tokenIds });
        });
        seen.requests += list.length;
        seen.preemptions += engine.stats.preemptions;
        seen.cached += engine.stats.cachedTokens;
        seen.batched = Math.max(seen.batched, runner.maxBatch);
      }),
      { numRuns: 800 },
    );
    // The property is worth something only if all of this happened.
    expect(seen.requests).toBeGreaterThan(2000);
    expect(seen.preemptions).toBeGreaterThan(100);
    expect(seen.cached).toBeGreaterThan(1000);
    expect(seen.aborted).toBeGreaterThan(50);
    expect(seen.batched).toBeGreaterThanOrEqual(6);
  });
});

describe('prefix cache', () => {
  it('counts the tokens found, in usage and in the counters, and computes only the rest', () => {
    const { engine, runner } = setup({ numBlocks: 50 });
    engine.add(fakeSequence(1, { prompt: range(18), params: { maxNewTokens: 1 } }));
    drain(engine);
    expect(runner.computedTokens).toBe(18);
    engine.add(fakeSequence(2, { prompt: [...range(18), 45], params: { maxNewTokens: 1 } }));
    expect(drain(engine).results.get(2)!.usage.cachedTokens).toBe(16);
    expect(runner.computedTokens).toBe(18 + 3);
    expect(engine.stats.cachedTokens).toBe(16);
  });

  it('is not shared between different images or instructions', () => {
    const { engine } = setup({ numBlocks: 50 });
    const ask = (id: number, images: string[], instructionIds: number[]): number => {
      engine.add(fakeSequence(id, { prompt: range(18), images, instructionIds, params: { maxNewTokens: 1 } }));
      return drain(engine).results.get(id)!.usage.cachedTokens;
    };
    expect(ask(1, ['cat'], [1])).toBe(0);
    expect(ask(2, ['dog'], [1])).toBe(0);
    expect(ask(3, ['cat'], [2])).toBe(0);
    expect(ask(4, ['cat', 'dog'], [1])).toBe(0);
    expect(ask(5, ['cat'], [1])).toBe(16);
  });
});

describe('a request that cannot run', () => {
  it.each([
    ['an empty prompt', [], SMALL],
    ['a prompt as long as the context', range(30), { ...SMALL, maxPositions: 30 }],
    ['a prompt that no empty pool holds', range(48), SMALL],
  ])('%s is refused when it is added, and others go on', (_, prompt, all) => {
    const { engine } = setup(all);
    expect(() => engine.add(fakeSequence(1, { prompt }))).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
    engine.add(fakeSequence(2, { prompt: range(3), params: { maxNewTokens: 2 } }));
    expect(drain(engine).results.get(2)!.tokenIds).toEqual(
      aloneTokens({ prompt: range(3), params: { maxNewTokens: 2, seed: 1 } }, 48),
    );
  });

  it('the longest prompt that leaves room for one token gets exactly one', () => {
    const { engine } = setup();
    engine.add(fakeSequence(1, { prompt: range(47), params: { maxNewTokens: 9, ignoreEos: true } }));
    const result = drain(engine).results.get(1)!;
    expect([result.finishReason, result.tokenIds.length]).toEqual(['length', 1]);
  });
});

describe('abort', () => {
  it('ends a waiting and a running request with what they have, and is ignored for an unknown one', () => {
    const { engine } = setup({ maxBatchSize: 1 });
    for (const id of [1, 2])
      engine.add(fakeSequence(id, { prompt: range(5), params: { maxNewTokens: 50, ignoreEos: true } }));
    const { results } = drain(engine, (step) => {
      if (step === 4) [1, 2, 99].forEach((id) => engine.abort(id));
    });
    expect(results.get(1)).toMatchObject({ finishReason: 'abort' });
    expect(results.get(1)!.tokenIds).toHaveLength(4);
    expect(results.get(2)).toMatchObject({ finishReason: 'abort', tokenIds: [] });
    expect(engine.blocks.inUse).toBe(0);
  });

  it('shows text that was held back as a possible stop string', () => {
    const { engine } = setup();
    const alone = aloneTokens({ prompt: range(5), params: { maxNewTokens: 3, seed: 1 } }, 48);
    const first = String.fromCodePoint(96 + alone[0]!);
    engine.add(fakeSequence(1, { prompt: range(5), params: { maxNewTokens: 9, stop: `${first}??` } }));
    const { results, streamed } = drain(engine, (step) => step === 1 && engine.abort(1));
    expect(results.get(1)!.text).toBe(first);
    expect(streamed.get(1)!.text).toBe(first);
  });
});

describe('failures', () => {
  const four = (engine: Engine): void => {
    for (let id = 0; id < 4; id++)
      engine.add(fakeSequence(id, { prompt: range(3 + id), params: { maxNewTokens: 12 } }));
  };
  const answer = (id: number): number[] =>
    aloneTokens({ prompt: range(3 + id), params: { maxNewTokens: 12, seed: 1 } }, 48);

  it('of one sequence end that request only', () => {
    const { engine, runner } = setup();
    const error = new QFormerError('FORMAT', 'no finite score');
    runner.fault = (sequence) => (sequence.id === 2 && sequence.numGenerated === 3 ? error : undefined);
    four(engine);
    const { results, errors } = drain(engine);
    expect([...errors]).toEqual([[2, error]]);
    for (const id of [0, 1, 3]) expect(results.get(id)!.tokenIds).toEqual(answer(id));
    expect(engine.blocks.inUse).toBe(0);
  });

  it('of a whole step end the requests of that step; waiting and later ones are served', () => {
    const { engine, runner } = setup({ maxBatchSize: 2 });
    let failed = 0;
    runner.before = (batch) => {
      if (batch.length === 2 && failed++ === 0) throw new QFormerError('OUT_OF_MEMORY', 'no memory');
    };
    four(engine);
    const { results, errors } = drain(engine);
    expect([...errors.keys()]).toEqual([0, 1]);
    for (const id of [2, 3]) expect(results.get(id)!.tokenIds).toEqual(answer(id));
    engine.add(fakeSequence(9, { prompt: range(4), params: { maxNewTokens: 12 } }));
    expect(drain(engine).results.get(9)!.tokenIds).toEqual(answer(1));
    expect(engine.blocks.inUse).toBe(0);
  });

  it('leave nothing of a failed step in the prefix cache', () => {
    const { engine, runner } = setup({ numBlocks: 50 });
    runner.before = () => {
      throw new Error('broken');
    };
    engine.add(fakeSequence(1, { prompt: range(18) }));
    drain(engine);
    runner.before = undefined;
    engine.add(fakeSequence(2, { prompt: range(18) }));
    expect(drain(engine).results.get(2)!.usage.cachedTokens).toBe(0);
  });

  it('of the device poison the engine: every request gets the fault, and so does every later one', () => {
    const { engine, runner } = setup({ maxBatchSize: 2 });
    const fault = new QFormerError('CUDA', 'illegal address');
    runner.before = () => {
      throw fault;
    };
    four(engine);
    expect([...drain(engine).errors.values()]).toEqual([fault, fault, fault, fault]);
    expect(engine.poison).toBe(fault);
    expect(() => engine.add(fakeSequence(9, { prompt: [1] }))).toThrow(fault);
    expect(engine.blocks.inUse).toBe(0);
  });

  it('of a runner that forgets a token are that request’s', () => {
    const { engine, runner } = setup();
    const original = runner.runStep.bind(runner);
    runner.runStep = (batch) => original(batch).slice(0, batch.length - 1);
    for (const id of [1, 2]) engine.add(fakeSequence(id, { prompt: range(4), params: { maxNewTokens: 1 } }));
    const { results, errors } = drain(engine);
    expect(errors.get(2)).toMatchObject({ code: 'INTERNAL' });
    expect(results.get(1)!.tokenIds).toHaveLength(1);
  });
});

describe('fairness', () => {
  it('requests that arrive all the time never keep an older one from finishing', () => {
    const { engine } = setup({ maxBatchSize: 3 });
    engine.add(fakeSequence(0, { prompt: range(20), params: { maxNewTokens: 20, ignoreEos: true } }));
    let next = 1;
    let finished = -1;
    for (let step = 0; step < 60 && finished < 0; step++) {
      engine.add(fakeSequence(next++, { prompt: range(9, next % 7), params: { maxNewTokens: 8, ignoreEos: true } }));
      if (engine.step().some((event) => event.type === 'end' && event.id === 0)) finished = step;
    }
    // 20 prompt tokens at 16 a step and 20 answers: 21 steps, however many others wait.
    expect(finished).toBe(20);
  });
});
