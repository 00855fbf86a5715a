// Beam search over a runner without tensors that notices every wrong block: forks, copies, preemption and aborts must leave
// each answer what it is alone, and no block may be lost.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Engine, type EngineLimits } from '../lib/engine/scheduling/engine.js';
import type { EngineResult } from '../lib/engine/protocol.js';
import { QFormerError } from '../lib/errors.js';
import { FakeRunner, aloneBeams, aloneTokens, fakeGroup, letter, type FakeRequest } from './support/fake-runner.js';

const SMALL: EngineLimits = { numBlocks: 60, blockSize: 4, maxBatchSize: 12, maxStepTokens: 16, maxPositions: 1000 };

function setup(limits: Partial<EngineLimits> = {}) {
  const all = { ...SMALL, ...limits };
  const runner = new FakeRunner(all);
  return { runner, engine: new Engine(runner, all) };
}

interface Outcome {
  results: Map<number, EngineResult>;
  errors: Map<number, unknown>;
  deltas: Map<number, { text: string; tokenIds: number[] }[]>;
}

function drain(engine: Engine, atStep?: (step: number) => void): Outcome {
  const outcome: Outcome = { results: new Map(), errors: new Map(), deltas: new Map() };
  for (let step = 0; engine.hasWork; step++) {
    expect(step).toBeLessThan(100_000);
    atStep?.(step);
    for (const event of engine.step()) {
      if (event.type === 'end') outcome.results.set(event.id, event.result);
      else if (event.type === 'error') outcome.errors.set(event.id, event.error);
      else {
        const { text, tokenIds } = event;
        outcome.deltas.set(event.id, [...(outcome.deltas.get(event.id) ?? []), { text, tokenIds }]);
      }
    }
  }
  expect(engine.blocks.inUse).toBe(0);
  return outcome;
}

const range = (n: number, from = 1): number[] => Array.from({ length: n }, (_, i) => from + (i % 40));
const beams = (params: FakeRequest['params']): FakeRequest['params'] => ({
  numBeams: 4,
  numReturnSequences: 4,
  maxNewTokens: 12,
  ...params,
});
const answersOf = ({ beams: answers }: EngineResult) => answers!.map(({ tokenIds, score }) => ({ tokenIds, score }));

const request = fc.record({
  prompt: fc
    .tuple(fc.nat(2), fc.integer({ min: 1, max: 14 }), fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 3 }))
    .map(([family, length, tail]) => [...range(length, 1 + family), ...tail]),
  params: fc.record({
    maxNewTokens: fc.integer({ min: 1, max: 18 }),
    seed: fc.nat(5),
    numBeams: fc.integer({ min: 1, max: 5 }),
    lengthPenalty: fc.constantFrom(-1, 0, 0.5, 1, 2),
    earlyStopping: fc.constantFrom<(boolean | 'never')[]>(true, false, 'never'),
    noRepeatNgramSize: fc.nat(2),
    stop: fc.subarray(['ab', 'q', 'xy']),
    minNewTokens: fc.constantFrom(0, 0, 1),
  }),
});

const limits = fc.record({
  numBlocks: fc.integer({ min: 14, max: 36 }),
  blockSize: fc.integer({ min: 1, max: 8 }),
  maxBatchSize: fc.integer({ min: 3, max: 16 }),
  maxStepTokens: fc.integer({ min: 1, max: 40 }),
  maxPositions: fc.integer({ min: 24, max: 60 }),
  prefixCache: fc.boolean(),
});

describe('any mix of beam searches and samples over any small pool', () => {
  it('gives each request what it gets alone, and gives all blocks back', () => {
    const seen = { searches: 0, preemptions: 0, copies: 0, aborted: 0, refused: 0, early: 0 };
    const arrivals = fc.array(fc.record({ request, step: fc.nat(10), abortAt: fc.option(fc.nat(30), { freq: 6 }) }), {
      minLength: 2,
      maxLength: 8,
      size: 'max',
    });
    fc.assert(
      fc.property(limits, arrivals, (all, list) => {
        const runner = new FakeRunner(all);
        const engine = new Engine(runner, all);
        const requests = list.map(({ request: { prompt, params } }): FakeRequest => {
          const { numBeams, lengthPenalty, earlyStopping, ...common } = params;
          const search = { numBeams, numReturnSequences: numBeams, lengthPenalty, earlyStopping };
          return { prompt, params: numBeams > 1 ? { ...common, ...search } : common };
        });
        const contexts = new Map<number, number>();
        const add = (id: number): void => {
          const { prompt, params } = requests[id]!;
          const { numBeams = 1 } = params!;
          const shared = numBeams === 1 ? 0 : Math.floor(prompt.length / all.blockSize);
          const blocks = shared + Math.floor(Math.max(0, all.numBlocks - shared) / numBeams);
          const context = Math.min(all.maxPositions, blocks * all.blockSize);
          if (prompt.length < context) contexts.set(id, context);
          try {
            engine.add(fakeGroup(id, requests[id]!));
          } catch (error) {
            expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
            expect(contexts.has(id)).toBe(false);
            seen.refused++;
          }
        };
        const { results, errors } = (() => {
          const outcome: Outcome = { results: new Map(), errors: new Map(), deltas: new Map() };
          for (let step = 0; engine.hasWork || step <= 10; step++) {
            list.forEach((arrival, id) => {
              if (arrival.step === step) add(id);
              if (arrival.abortAt === step) engine.abort(id);
            });
            for (const event of engine.step()) {
              if (event.type === 'end') outcome.results.set(event.id, event.result);
              else if (event.type === 'error') outcome.errors.set(event.id, event.error);
            }
          }
          return outcome;
        })();
        expect(engine.blocks.inUse).toBe(0);
        expect([...errors.values()]).toEqual([]);
        for (const [id, context] of contexts) {
          const result = results.get(id)!;
          if (result.finishReason === 'abort') seen.aborted++;
          else if (result.beams === undefined) expect(result.tokenIds).toEqual(aloneTokens(requests[id]!, context));
          else {
            expect(answersOf(result)).toEqual(aloneBeams(requests[id]!, context));
            seen.searches++;
            if (result.finishReason === 'stop') seen.early++;
          }
        }
        seen.preemptions += engine.stats.preemptions;
        seen.copies += runner.copiedBlocks;
      }),
      { numRuns: 400 },
    );
    // The property is worth something only if all of this happened.
    expect(seen.searches).toBeGreaterThan(500);
    expect(seen.preemptions).toBeGreaterThan(50);
    expect(seen.copies).toBeGreaterThan(1000);
    expect(seen.aborted).toBeGreaterThan(20);
    expect(seen.early).toBeGreaterThan(50);
  });
});

describe('a beam search', () => {
  it('computes its prompt once and shares its full blocks', () => {
    const { engine, runner } = setup({ numBlocks: 20, prefixCache: false });
    engine.add(fakeGroup(1, { prompt: range(33), params: beams({ maxNewTokens: 2, ignoreEos: true }) }));
    let most = 0;
    drain(engine, () => (most = Math.max(most, engine.blocks.inUse)));
    // 33 of the prompt, then four beams of one token. 8 full blocks, and a ninth of each beam.
    expect(runner.computedTokens).toBe(33 + 4);
    expect(runner.copiedBlocks).toBe(3);
    expect(most).toBeLessThanOrEqual(8 + 4);
  });

  it('gives its text as one piece at the end, which is its best answer', () => {
    const { engine } = setup();
    engine.add(fakeGroup(1, { prompt: range(5), params: beams({ numReturnSequences: 2, maxNewTokens: 5 }) }));
    const { results, deltas } = drain(engine);
    const result = results.get(1)!;
    expect(result.beams).toHaveLength(2);
    expect(result.beams![0]).toMatchObject({ text: result.text, tokenIds: result.tokenIds });
    expect(result.text).toBe(
      result.tokenIds
        .filter((id) => id > 0)
        .map(letter)
        .join(''),
    );
    expect(deltas.get(1)).toEqual([{ text: result.text, tokenIds: result.tokenIds }]);
    expect(result.usage).toMatchObject({ promptTokens: 5, completionTokens: result.tokenIds.length });
  });

  it('ends an answer in front of a stop string', () => {
    const { engine } = setup();
    const plain = { prompt: range(5), params: beams({ maxNewTokens: 6, lengthPenalty: -1, ignoreEos: true }) };
    const stop = letter(aloneBeams(plain, 1000)[0]!.tokenIds[2]!);
    engine.add(fakeGroup(1, { ...plain, params: { ...plain.params, stop } }));
    const { beams: answers } = drain(engine).results.get(1)!;
    const stopped = answers!.filter(({ tokenIds }) => tokenIds.length < 6);
    expect(stopped.length).toBeGreaterThan(0);
    for (const { text, tokenIds } of stopped) {
      expect(letter(tokenIds[tokenIds.length - 1]!)).toBe(stop);
      expect(text).toHaveLength(tokenIds.length - 1);
    }
  });

  it('that is aborted gives the best answer so far and its memory back', () => {
    const { engine } = setup();
    engine.add(fakeGroup(1, { prompt: range(5), params: beams({ maxNewTokens: 50, ignoreEos: true }) }));
    engine.add(fakeGroup(2, { prompt: range(5), params: beams({ maxNewTokens: 50, ignoreEos: true }) }));
    const { results, deltas } = drain(engine, (step) => {
      if (step === 0) engine.abort(2);
      if (step === 4) engine.abort(1);
    });
    expect(results.get(1)).toMatchObject({ finishReason: 'abort' });
    expect(results.get(1)!.tokenIds).toHaveLength(4);
    expect(deltas.get(1)![0]!.tokenIds).toEqual(results.get(1)!.tokenIds);
    expect(results.get(2)).toMatchObject({ finishReason: 'abort', tokenIds: [], text: '' });
    expect(deltas.has(2)).toBe(false);
  });

  it('runs alone where it is wider than the batch', () => {
    const { engine, runner } = setup({ maxBatchSize: 2 });
    for (const id of [1, 2]) engine.add(fakeGroup(id, { prompt: range(5, id), params: beams({}) }));
    engine.add(fakeGroup(3, { prompt: range(5), params: { maxNewTokens: 3 } }));
    expect(drain(engine).results.size).toBe(3);
    expect(runner.maxBatch).toBe(4);
  });

  it('whose beams do not fit the pool together is refused with what would', () => {
    const { engine } = setup({ numBlocks: 8 });
    const add = (length: number) => () => engine.add(fakeGroup(length, { prompt: range(length), params: beams({}) }));
    // 4 full blocks are shared; the other 4 are one for each beam.
    expect(add(20)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', details: { promptTokens: 20, maxContext: 20 } }),
    );
    add(19)();
    expect(
      drain(engine)
        .results.get(19)!
        .beams!.every(({ tokenIds }) => tokenIds.length === 1),
    ).toBe(true);
  });

  it('fails alone when one of its beams does', () => {
    const { engine, runner } = setup();
    const error = new QFormerError('FORMAT', 'NaN');
    let calls = 0;
    runner.fault = (sequence) =>
      sequence.id === 1 && sequence.numGenerated === 2 && calls++ === 1 ? error : undefined;
    for (const id of [1, 2]) engine.add(fakeGroup(id, { prompt: range(5), params: beams({}) }));
    const { results, errors } = drain(engine);
    expect([...errors]).toEqual([[1, error]]);
    expect(answersOf(results.get(2)!)).toEqual(aloneBeams({ prompt: range(5), params: beams({}) }, 1000));
  });

  it('without any finite candidate is an error', () => {
    const { engine } = setup();
    const badWords = Array.from({ length: 50 }, (_, id) => [id]);
    engine.add(fakeGroup(1, { prompt: range(5), params: beams({ badWords, minNewTokens: 1 }) }));
    expect(drain(engine).errors.get(1)).toMatchObject({ code: 'FORMAT' });
  });
});
