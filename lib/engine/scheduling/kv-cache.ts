// Bookkeeping of the paged KV pool: which fixed-size blocks are free, shared or cached. No tensors.
// A full block is known by a SHA-256 digest chained over all token ids up to its end, seeded by everything else its keys and
// values depend on (images, instruction, adapter); two blocks with one digest hold the same bits, because the kernels'
// results do not depend on the batch. A block that nobody references stays cached until it is the least recently used and
// its space is needed. After vLLM (Kwon et al. 2023, section 4) and SGLang's prefix reuse (Zheng et al. 2024).

import { createHash } from 'node:crypto';
import { QFormerError } from '../../errors.js';

/** What the manager needs to know of, and keeps in, a sequence. */
export interface BlockOwner {
  /** Prompt and generated tokens. */
  readonly tokens: readonly number[];
  /** Whatever besides the token ids decides keys and values. */
  readonly cacheSeed: string;
  /** Blocks in order of position. */
  blockTable: number[];
  /** Digests of the full blocks computed so far; token ids never change, so they stay valid over a preemption. */
  readonly blockHashes: string[];
}

/** Tokens [start, end) of an owner, about to be written to its blocks. */
export interface BlockWrite {
  owner: BlockOwner;
  start: number;
  end: number;
}

/** A block whose first `tokens` tokens are copied to another before anything is written; the rest of it was never written. */
export interface BlockCopy {
  from: number;
  to: number;
  tokens: number;
}

/** Hands out, shares, copies, caches and evicts the blocks of the KV pool. */
export class BlockManager {
  readonly #references: Int32Array;
  readonly #hashes: (string | undefined)[];
  readonly #byHash = new Map<string, number>();
  readonly #free: number[] = [];
  /** Unreferenced blocks with known content, least recently used first. */
  readonly #cached = new Set<number>();
  /** Cached blocks given up for new ones so far. */
  evicted = 0;

  constructor(
    readonly numBlocks: number,
    readonly blockSize: number,
    readonly prefixCache = true,
  ) {
    if (!Number.isSafeInteger(numBlocks) || numBlocks < 1 || !Number.isSafeInteger(blockSize) || blockSize < 1) {
      throw new QFormerError(
        'INVALID_ARGUMENT',
        `the KV pool needs at least one block, got ${numBlocks} of ${blockSize}`,
      );
    }
    this.#references = new Int32Array(numBlocks);
    this.#hashes = new Array<string | undefined>(numBlocks).fill(undefined);
    for (let block = numBlocks - 1; block >= 0; block--) this.#free.push(block);
  }

  /** Blocks that can be handed out: free ones and cached ones that nobody references. */
  get available(): number {
    return this.#free.length + this.#cached.size;
  }

  /** Blocks that some sequence references. */
  get inUse(): number {
    return this.numBlocks - this.available;
  }

  /** Blocks that nobody references, kept for their content. */
  get cached(): number {
    return this.#cached.size;
  }

  /** Blocks for `tokens` tokens. */
  blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.blockSize);
  }

  /**
   * Gives a sequence without blocks the cached prefix of its tokens and room for the rest.
   * Returns the tokens that need no computation (never all of them: the last one yields the logits), or -1 where the pool
   * has no room for them and `headroom` more blocks; nothing has changed then.
   */
  start(owner: BlockOwner, headroom = 0): number {
    // The last token is always computed: it yields the logits.
    const hits = this.#cachedBlocks(owner, Math.floor((owner.tokens.length - 1) / this.blockSize));
    const idle = hits.filter((block) => this.#references[block] === 0).length;
    const missing = this.blocksFor(owner.tokens.length) - hits.length;
    if (missing + headroom > this.available - idle) return -1;
    for (const block of hits) this.#acquire(block);
    owner.blockTable = [...hits];
    this.grow(owner, owner.tokens.length);
    return hits.length * this.blockSize;
  }

  /**
   * Gives an owner without blocks, whose blocks are of use only together, all of them: the cached ones where every one is
   * there, new ones otherwise. Returns the tokens that need no computation, all or none, or -1 as `start` does.
   */
  startWhole(owner: BlockOwner, headroom = 0): number {
    const count = this.blocksFor(owner.tokens.length);
    const found = this.#cachedBlocks(owner, count);
    const hits = found.length === count ? found : [];
    const idle = hits.filter((block) => this.#references[block] === 0).length;
    if (count - hits.length + headroom > this.available - idle) return -1;
    for (const block of hits) this.#acquire(block);
    owner.blockTable = [...hits];
    this.grow(owner, owner.tokens.length);
    return hits.length > 0 ? owner.tokens.length : 0;
  }

  /** Extends a block table to hold `tokens` tokens. False where the pool has no room; nothing has changed then. */
  grow(owner: BlockOwner, tokens: number): boolean {
    const missing = this.blocksFor(tokens) - owner.blockTable.length;
    if (missing > this.available) return false;
    for (let i = 0; i < missing; i++) owner.blockTable.push(this.#take());
    return true;
  }

  /** Gives an owner without blocks those of the first `tokens` tokens of another one, which has computed them and begins with the same. */
  fork(from: BlockOwner, to: BlockOwner, tokens: number): void {
    to.blockTable = from.blockTable.slice(0, this.blocksFor(tokens));
    for (const block of to.blockTable) this.#references[block]!++;
  }

  /**
   * Makes room for all `writes`: extends the block tables, and gives an owner a copy of the partly filled block that it shares.
   * Returns the copies to make first, or undefined where the pool has no room; nothing has changed then.
   */
  reserve(writes: readonly BlockWrite[]): BlockCopy[] | undefined {
    if (this.#blocksNeeded(writes) > this.available) return undefined;
    return writes.flatMap(({ owner, start, end }) => {
      const index = Math.floor(start / this.blockSize);
      const from = owner.blockTable[index];
      const copies: BlockCopy[] = [];
      if (from !== undefined && start % this.blockSize !== 0 && this.#references[from]! > 1) {
        this.#references[from]!--;
        owner.blockTable[index] = this.#take();
        copies.push({ from, to: owner.blockTable[index], tokens: start % this.blockSize });
      }
      this.grow(owner, end);
      return copies;
    });
  }

  #blocksNeeded(writes: readonly BlockWrite[]): number {
    const references = new Map<number, number>();
    let needed = 0;
    for (const { owner, start, end } of writes) {
      needed += this.blocksFor(end) - owner.blockTable.length;
      const block = owner.blockTable[Math.floor(start / this.blockSize)];
      if (block === undefined || start % this.blockSize === 0) continue;
      const left = references.get(block) ?? this.#references[block]!;
      if (left > 1) needed++;
      references.set(block, left - 1);
    }
    return needed;
  }

  /** Makes the blocks that the first `computed` tokens fill known to later requests. Call it after the forward pass. */
  commit(owner: BlockOwner, computed: number, before: number): void {
    this.#publish(owner, Math.floor(before / this.blockSize), Math.floor(computed / this.blockSize));
  }

  /** Makes all blocks of an owner started by `startWhole` known to later requests. */
  commitWhole(owner: BlockOwner): void {
    this.#publish(owner, 0, owner.blockTable.length);
  }

  #publish(owner: BlockOwner, start: number, end: number): void {
    if (!this.prefixCache) return;
    for (let i = start; i < end; i++) {
      const block = owner.blockTable[i]!;
      const hash = this.#hashOf(owner, i);
      if (this.#hashes[block] !== undefined || this.#byHash.has(hash)) continue;
      this.#hashes[block] = hash;
      this.#byHash.set(hash, block);
    }
  }

  /** Takes all blocks from a sequence. The tail becomes evictable first, so that common beginnings live longest. */
  release(owner: BlockOwner): void {
    for (let i = owner.blockTable.length - 1; i >= 0; i--) {
      const block = owner.blockTable[i]!;
      const left = --this.#references[block]!;
      if (left < 0) throw new QFormerError('INTERNAL', `KV block ${block} was released twice`);
      if (left > 0) continue;
      if (this.#hashes[block] === undefined) this.#free.push(block);
      else this.#cached.add(block);
    }
    owner.blockTable = [];
  }

  /** The cached ones of the first `count` blocks, up to the first that is not. */
  #cachedBlocks(owner: BlockOwner, count: number): number[] {
    const hits: number[] = [];
    if (!this.prefixCache) return hits;
    for (let i = 0; i < count; i++) {
      const block = this.#byHash.get(this.#hashOf(owner, i));
      if (block === undefined) break;
      hits.push(block);
    }
    return hits;
  }

  #hashOf(owner: BlockOwner, index: number): string {
    for (let i = owner.blockHashes.length; i <= index; i++) {
      const ids = Int32Array.from(owner.tokens.slice(i * this.blockSize, (i + 1) * this.blockSize));
      const parent = i === 0 ? `seed:${owner.cacheSeed}` : owner.blockHashes[i - 1]!;
      owner.blockHashes.push(createHash('sha256').update(parent).update(':').update(ids).digest('base64'));
    }
    return owner.blockHashes[index]!;
  }

  #acquire(block: number): void {
    if (this.#references[block]!++ === 0) this.#cached.delete(block);
  }

  #take(): number {
    const block = this.#free.pop() ?? this.#evict();
    this.#references[block] = 1;
    return block;
  }

  #evict(): number {
    for (const block of this.#cached) {
      this.#cached.delete(block);
      this.#byHash.delete(this.#hashes[block]!);
      this.#hashes[block] = undefined;
      this.evicted++;
      return block;
    }
    throw new QFormerError('INTERNAL', 'the KV pool is empty');
  }
}
