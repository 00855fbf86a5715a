// The engine over an encoder–decoder model, on every device: what the encoder reads shares the KV pool with the decoder, is found
// again in the prefix cache as a whole or not at all, counts as the prompt, and is bounded by the pool.
import { describe, expect, it } from 'vitest';
import { BlockManager, type BlockOwner } from '../lib/engine/scheduling/kv-cache.js';
import { expectDevices, inF32, testDevices } from './support/devices.js';
import { finishAll, idsSequence, withEngine, type LoadedEngine, type LoadOptions } from './support/engine-models.js';
import { Goldens } from './support/fixtures.js';

expectDevices();

const T5_TINY = 'generated/t5-tiny';
const goldens = new Goldens('generated', 't5-tiny', 'expected.safetensors');
const ids = goldens.ids('input_ids');
/** As the reference was asked. */
const params = { maxNewTokens: 30, minNewTokens: 30 };

const owner = (tokens: number[], cacheSeed = ''): BlockOwner => ({
  tokens,
  cacheSeed,
  blockTable: [],
  blockHashes: [],
});
const tokens = (count: number, first = 0): number[] => Array.from({ length: count }, (_, i) => first + i);

describe('blocks that are of use only together', () => {
  it('are all found again, the partly filled last one too', () => {
    const blocks = new BlockManager(8, 4);
    const first = owner(tokens(10));
    expect(blocks.startWhole(first)).toBe(0);
    blocks.commitWhole(first);
    const { blockTable } = first;
    blocks.release(first);
    const again = owner(tokens(10));
    expect(blocks.startWhole(again)).toBe(10);
    expect(again.blockTable).toEqual(blockTable);
    blocks.release(again);
    expect(blocks.inUse).toBe(0);
  });

  it('are taken anew where one of them was evicted', () => {
    const blocks = new BlockManager(4, 4);
    const first = owner(tokens(10));
    blocks.startWhole(first);
    blocks.commitWhole(first);
    blocks.release(first);
    const other = owner(tokens(8, 50), 'other');
    expect(blocks.start(other)).toBe(0); // one free block and one of the three
    blocks.release(other);
    expect(blocks.startWhole(owner(tokens(10)))).toBe(0);
  });

  it('are not given where they and the headroom do not fit, and nothing has changed then', () => {
    const blocks = new BlockManager(3, 4);
    expect(blocks.startWhole(owner(tokens(10)), 1)).toBe(-1);
    expect(blocks.startWhole(owner(tokens(13)))).toBe(-1);
    expect(blocks.available).toBe(3);
  });

  it('are not shared without a prefix cache', () => {
    const blocks = new BlockManager(8, 4, false);
    const first = owner(tokens(8));
    blocks.startWhole(first);
    blocks.commitWhole(first);
    expect(blocks.startWhole(owner(tokens(8)))).toBe(0);
  });
});

describe.each(testDevices)('a request to an encoder–decoder model on %s', (device) => {
  const withT5 = (options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(T5_TINY, { ...inF32(device), ...options }, use);

  it('gives the ids of the reference and counts what the encoder read as its prompt', async () => {
    await withT5({}, ({ engine, model }) => {
      engine.add(idsSequence(1, model, { ids, params, eosTokenIds: [1] }));
      const { tokenIds, usage, finishReason } = finishAll(engine).get(1)!;
      expect(tokenIds).toEqual(goldens.ids('greedy_ids'));
      expect(usage).toEqual({ promptTokens: 41, completionTokens: 30, cachedTokens: 0, imageTokens: 0 });
      expect(finishReason).toBe('length');
    });
  });

  it('finds the whole of an earlier prompt in the cache, and nothing of one that ends otherwise', async () => {
    await withT5({}, ({ engine, model }) => {
      const ask = (prompt: number[]) => {
        engine.add(idsSequence(1, model, { ids: prompt, params }));
        return finishAll(engine).get(1)!;
      };
      const first = ask(ids);
      const again = ask(ids);
      expect(again.usage.cachedTokens).toBe(41);
      expect(again.tokenIds).toEqual(first.tokenIds);
      const other = ask([...ids.slice(0, -1), 7]);
      expect(other.usage.cachedTokens).toBe(0);
      expect(other.tokenIds).not.toEqual(first.tokenIds);
    });
  });

  it('reads a prompt that is longer than the budget of a step in one piece', async () => {
    await withT5({ maxStepTokens: 4, maxBatchSize: 2 }, ({ engine, model }) => {
      for (const id of [1, 2, 3]) engine.add(idsSequence(id, model, { ids, params }));
      for (const { tokenIds } of finishAll(engine).values()) expect(tokenIds).toEqual(goldens.ids('greedy_ids'));
    });
  });

  it('ends when the pool is full: 41 tokens take three of four blocks, one is left for the answer', async () => {
    await withT5({ kvCacheTokens: 64 }, ({ engine, model }) => {
      engine.add(idsSequence(1, model, { ids, params }));
      const { tokenIds, finishReason } = finishAll(engine).get(1)!;
      expect(tokenIds).toEqual(goldens.ids('greedy_ids').slice(0, 15));
      expect(finishReason).toBe('length');
    });
  });

  it.each([32, 48])('is refused where %i tokens of pool leave no room for an answer', async (kvCacheTokens) => {
    await withT5({ kvCacheTokens }, ({ engine, model }) => {
      const details = { promptTokens: 41 };
      const refused = expect.objectContaining({ code: 'INVALID_ARGUMENT', details: expect.objectContaining(details) });
      expect(() => engine.add(idsSequence(1, model, { ids, params }))).toThrow(refused);
      expect(engine.hasWork).toBe(false);
    });
  });

  it('that is aborted while others run gives its blocks back and changes nothing for them', async () => {
    await withT5({}, ({ engine, model }) => {
      for (const id of [1, 2]) engine.add(idsSequence(id, model, { ids, params }));
      let steps = 0;
      const results = finishAll(engine, () => ++steps === 5 && engine.abort(1));
      expect(results.get(1)).toMatchObject({ finishReason: 'abort', tokenIds: goldens.ids('greedy_ids').slice(0, 5) });
      expect(results.get(2)!.tokenIds).toEqual(goldens.ids('greedy_ids'));
    });
  });

  it('whose encoder fails is ended with that error, and the next one is served', async () => {
    await withT5({}, ({ engine, model }) => {
      engine.add(idsSequence(1, model, { ids: [...ids.slice(0, 5), 99_999], params }));
      expect(() => finishAll(engine)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(engine.blocks.inUse).toBe(0);
      engine.add(idsSequence(2, model, { ids, params }));
      expect(finishAll(engine).get(2)!.tokenIds).toEqual(goldens.ids('greedy_ids'));
    });
  });
});
