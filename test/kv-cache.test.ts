// The block manager alone: allocation, sharing, eviction, and what must never be shared.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BlockManager, type BlockOwner } from '../lib/engine/scheduling/kv-cache.js';

const SIZE = 4;

function owner(tokens: number[], cacheSeed = ''): BlockOwner {
  return { tokens, cacheSeed, blockTable: [], blockHashes: [] };
}

function run(blocks: BlockManager, tokens: number[], cacheSeed = ''): BlockOwner {
  const sequence = owner(tokens, cacheSeed);
  const cached = blocks.start(sequence);
  expect(cached).toBeGreaterThanOrEqual(0);
  blocks.commit(sequence, tokens.length, cached);
  return sequence;
}

const range = (n: number, from = 0): number[] => Array.from({ length: n }, (_, i) => from + i);

describe('BlockManager', () => {
  it('shares the full blocks of an equal prefix and never a partially filled one', () => {
    const blocks = new BlockManager(20, SIZE);
    const first = run(blocks, range(10));
    const second = owner([...range(10), 99]);
    expect(blocks.start(second)).toBe(8);
    expect(second.blockTable.slice(0, 2)).toEqual(first.blockTable.slice(0, 2));
    expect(second.blockTable[2]).not.toBe(first.blockTable[2]);
    expect(blocks.inUse).toBe(4);
  });

  it('leaves at least one token to compute when the whole prompt is cached', () => {
    const blocks = new BlockManager(20, SIZE);
    run(blocks, range(8));
    expect(blocks.start(owner(range(8)))).toBe(4);
  });

  it('finds the blocks of a request that has ended, until they are evicted', () => {
    const blocks = new BlockManager(4, SIZE);
    blocks.release(run(blocks, range(9)));
    expect(blocks.inUse).toBe(0);
    const again = owner(range(9));
    expect(blocks.start(again)).toBe(8);
    blocks.release(again);
    blocks.release(run(blocks, range(16, 100)));
    expect(blocks.start(owner(range(9)))).toBe(0);
  });

  it.each([
    ['keeps the more recently used prefix whole', 0, 8],
    ['keeps the head of the older one longer than its tail', 100, 4],
  ])('evicts the least recently used block first: %s', (_, from, cached) => {
    const blocks = new BlockManager(6, SIZE);
    blocks.release(run(blocks, range(9)));
    blocks.release(run(blocks, range(9, 100)));
    blocks.release(run(blocks, range(9))); // used again: the other one is now the older
    blocks.release(run(blocks, range(12, 200))); // 3 blocks: the 2 free ones, and one of the older prefix
    expect(blocks.start(owner(range(9, from)))).toBe(cached);
  });

  it('keeps prefixes apart whose seed or earlier tokens differ', () => {
    const blocks = new BlockManager(20, SIZE);
    run(blocks, range(9), 'image a');
    expect(blocks.start(owner(range(9), 'image b'))).toBe(0);
    expect(blocks.start(owner([77, ...range(8, 1)], 'image a'))).toBe(0);
    expect(blocks.start(owner(range(9), 'image a'))).toBe(8);
  });

  it('shares nothing that was not committed', () => {
    const blocks = new BlockManager(20, SIZE);
    const first = owner(range(9));
    blocks.start(first);
    expect(blocks.start(owner(range(9)))).toBe(0);
    blocks.commit(first, 4, 0);
    expect(blocks.start(owner(range(9)))).toBe(4);
  });

  it('shares nothing when the prefix cache is off', () => {
    const blocks = new BlockManager(20, SIZE, false);
    blocks.release(run(blocks, range(9)));
    expect(blocks.start(owner(range(9)))).toBe(0);
  });

  it('refuses without a change where the pool has no room', () => {
    const blocks = new BlockManager(3, SIZE);
    const big = owner(range(13));
    expect(blocks.start(big)).toBe(-1);
    expect(big.blockTable).toEqual([]);
    const fits = owner(range(12));
    expect(blocks.start(fits)).toBe(0);
    expect(blocks.grow(fits, 13)).toBe(false);
    expect(fits.blockTable).toHaveLength(3);
    expect(blocks.available).toBe(0);
  });

  it('counts cached blocks it is about to reuse only once when it decides whether a prompt fits', () => {
    const blocks = new BlockManager(3, SIZE);
    blocks.release(run(blocks, range(12)));
    const longer = owner([...range(12), 1]); // 3 cached blocks and one more: 4 of 3
    expect(blocks.start(longer)).toBe(-1);
    expect(blocks.available).toBe(3);
  });

  it('counts cached blocks, and those given up for new ones', () => {
    const blocks = new BlockManager(3, SIZE);
    blocks.release(run(blocks, range(12)));
    expect([blocks.cached, blocks.evicted]).toEqual([3, 0]);
    run(blocks, [99, ...range(7)]); // 2 blocks of new content
    expect([blocks.cached, blocks.evicted]).toEqual([1, 2]);
  });

  it('lets a fork share blocks, and gives all but the last one that writes to a partly filled block a copy of it', () => {
    const blocks = new BlockManager(20, SIZE);
    const first = run(blocks, range(10));
    const [second, third] = [owner(range(11)), owner(range(11))];
    for (const fork of [second, third]) blocks.fork(first, fork, 10);
    expect(blocks.inUse).toBe(3);
    const shared = first.blockTable[2]!;
    const writes = [first, second, third].map((each) => ({ owner: each, start: 10, end: 11 }));
    const copies = blocks.reserve(writes)!;
    expect(copies.map(({ from, tokens }) => [from, tokens])).toEqual([
      [shared, 2],
      [shared, 2],
    ]);
    expect(copies.map(({ to }) => to)).toEqual([first.blockTable[2], second.blockTable[2]]);
    expect(third.blockTable[2]).toBe(shared);
    for (const each of [first, second, third]) blocks.release(each);
    expect(blocks.inUse).toBe(0);
  });

  it('copies nothing where the shared blocks are full, and shares no more than a fork begins with', () => {
    const blocks = new BlockManager(20, SIZE);
    const first = run(blocks, range(12));
    const second = owner([...range(8), 99]);
    blocks.fork(first, second, 8);
    expect(second.blockTable).toEqual(first.blockTable.slice(0, 2));
    expect(blocks.reserve([{ owner: second, start: 8, end: 9 }])).toEqual([]);
    expect(blocks.inUse).toBe(4);
  });

  it('reserves for all writes or for none', () => {
    const blocks = new BlockManager(5, SIZE);
    const first = run(blocks, range(10));
    const second = owner(range(11));
    blocks.fork(first, second, 10);
    // A copy and two blocks more: 3 of 2.
    const writes = [
      { owner: first, start: 10, end: 13 },
      { owner: second, start: 10, end: 13 },
    ];
    expect(blocks.reserve(writes)).toBeUndefined();
    expect(blocks.available).toBe(2);
    expect(first.blockTable).toEqual(second.blockTable);
    expect(blocks.reserve(writes.map((write) => ({ ...write, end: 12 })))).toHaveLength(1);
    expect(blocks.available).toBe(1);
  });

  it('reports a block that is released twice', () => {
    const blocks = new BlockManager(3, SIZE);
    const first = run(blocks, range(5));
    const copy = { ...first, blockTable: [...first.blockTable] };
    blocks.release(first);
    expect(() => blocks.release(copy)).toThrow(/released twice/);
  });

  it.each([
    [0, 4],
    [-1, 4],
    [1.5, 4],
    [4, 0],
    [Number.NaN, 4],
  ])('refuses a pool of %d blocks of %d', (count, size) => {
    expect(() => new BlockManager(count, size)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('neither loses nor doubles a block over any order of operations', () => {
    const step = fc.record({
      op: fc.constantFrom('start', 'grow', 'commit', 'release'),
      which: fc.nat(5),
      length: fc.integer({ min: 1, max: 20 }),
      family: fc.nat(2),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const blocks = new BlockManager(8, SIZE);
        const live = new Map<number, { owner: BlockOwner; computed: number }>();
        for (const { op, which, length, family } of steps) {
          const entry = live.get(which);
          if (op === 'start' && entry === undefined) {
            const sequence = owner(range(length).map((i) => (i < 6 ? i : i + 100 * family)));
            const cached = blocks.start(sequence);
            if (cached >= 0) live.set(which, { owner: sequence, computed: cached });
          } else if (op === 'commit' && entry !== undefined) {
            blocks.commit(entry.owner, entry.owner.tokens.length, entry.computed);
            entry.computed = entry.owner.tokens.length;
          } else if (op === 'grow' && entry !== undefined) {
            blocks.grow(entry.owner, entry.owner.tokens.length + length);
          } else if (op === 'release' && entry !== undefined) {
            blocks.release(entry.owner);
            live.delete(which);
          }
          const used = new Set([...live.values()].flatMap((e) => e.owner.blockTable));
          expect(blocks.inUse).toBe(used.size);
          for (const { owner: o } of live.values()) expect(new Set(o.blockTable).size).toBe(o.blockTable.length);
        }
        for (const { owner: o } of live.values()) blocks.release(o);
        expect(blocks.available).toBe(8);
      }),
      { numRuns: 500 },
    );
  });
});
