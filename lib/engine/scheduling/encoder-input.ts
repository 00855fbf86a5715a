// What the encoder of an encoder–decoder model reads for one request, and the blocks of the KV pool that hold the keys and values
// which the decoder's cross-attention reads. Computed once when the request is admitted, shared by all sequences of the request,
// given back with them. An encoder looks both ways: each block depends on the whole input, so they are cached together or not
// at all.

import type { BlockOwner } from './kv-cache.js';

export class EncoderInput implements BlockOwner {
  readonly cacheSeed: string;
  blockTable: number[] = [];
  readonly blockHashes: string[] = [];
  /** Whether the blocks hold what cross-attention reads. */
  computed = false;

  /** `seed`: whatever besides the token ids decides the result, as in a sequence. */
  constructor(
    readonly tokens: readonly number[],
    seed: string,
  ) {
    this.cacheSeed = JSON.stringify(['encoder', seed, tokens]);
  }

  /** Tokens that the next step has to compute. */
  get numPending(): number {
    return this.computed ? 0 : this.tokens.length;
  }
}
