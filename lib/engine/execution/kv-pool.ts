// The memory of the paged KV cache: per layer two tensors [blocks, block_size, num_kv_heads, head_dim].
// bytes per token = 2 · layers · num_kv_heads · head_dim · bytes per element (LLaMA-7B in f32: 1 MiB).

import { QFormerError, describe } from '../../errors.js';
import type { KvCache, LanguageModel } from '../../models/model.js';
import { Tensor, dtypeSize, keep, ops, scope, type Dtype } from '../../tensor/index.js';
import type { BlockCopy } from '../scheduling/kv-cache.js';

/** Tokens per block. */
export const BLOCK_SIZE = 16;

export interface KvPoolOptions {
  device: string;
  dtype: Dtype;
  /** Tokens; by default every one of maxBatchSize requests may fill its context, within maxBytes. */
  tokens?: number;
  maxBatchSize: number;
  /** Bound of the default size. */
  maxBytes: number;
}

/** Allocated once, freed by dispose(). */
export class KvPool implements KvCache {
  readonly blockSize = BLOCK_SIZE;
  readonly numBlocks: number;
  readonly bytes: number;
  readonly layers: { k: Tensor; v: Tensor }[] = [];
  readonly #device: string;

  /** Errors: INVALID_ARGUMENT for a size that is no positive integer, OUT_OF_MEMORY. */
  constructor(model: LanguageModel, options: KvPoolOptions) {
    const { numLayers, numKvHeads, headDim } = model;
    this.#device = options.device;
    const bytesPerToken = 2 * numLayers * numKvHeads * headDim * dtypeSize(options.dtype);
    this.numBlocks = Math.ceil(poolTokens(model, options, bytesPerToken) / BLOCK_SIZE);
    this.bytes = this.numBlocks * BLOCK_SIZE * bytesPerToken;
    const shape = [this.numBlocks, BLOCK_SIZE, numKvHeads, headDim];
    const allocate = (): Tensor => keep(Tensor.empty(shape, { dtype: options.dtype, device: options.device }));
    try {
      for (let i = 0; i < numLayers; i++) {
        const k = allocate();
        this.layers.push({ k, v: k });
        this.layers[i] = { k, v: allocate() };
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Copies the filled parts of blocks, all at a time: none is the source of one and the destination of another. */
  copyBlocks(copies: readonly BlockCopy[]): void {
    if (copies.length === 0) return;
    scope(() => {
      const slots = (end: 'from' | 'to'): Tensor => {
        const ids = copies.flatMap((copy) => Array.from({ length: copy.tokens }, (_, i) => copy[end] * BLOCK_SIZE + i));
        return Tensor.fromArray(Int32Array.from(ids), [ids.length], { device: this.#device });
      };
      const [from, to] = [slots('from'), slots('to')];
      const numSlots = this.numBlocks * BLOCK_SIZE;
      for (const { k, v } of this.layers) {
        for (const pool of [k, v]) {
          const rows = pool.reshape([numSlots, pool.size / numSlots]);
          ops.scatterRows(rows, to, ops.gatherRows(rows, from));
        }
      }
    });
  }

  dispose(): void {
    for (const { k, v } of this.layers) {
      k.dispose();
      v.dispose();
    }
  }
}

function poolTokens(model: LanguageModel, options: KvPoolOptions, bytesPerToken: number): number {
  const { tokens } = options;
  if (tokens === undefined) {
    const wanted = model.maxPositions * options.maxBatchSize;
    return Math.max(BLOCK_SIZE, Math.min(wanted, Math.floor(options.maxBytes / bytesPerToken)));
  }
  if (Number.isSafeInteger(tokens) && tokens > 0 && tokens < 2 ** 31 - BLOCK_SIZE) return tokens;
  const message = `kvCacheTokens must be a positive integer, got ${describe(tokens)}`;
  throw new QFormerError('INVALID_ARGUMENT', message, { option: 'kvCacheTokens' });
}
