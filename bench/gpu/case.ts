// What a GPU benchmark is: a name, the parameters that the peer script reads too, the work of one call, and how to make its
// data. A call's data exist several times over, so that each call reads its weights from memory and not from the L2 cache.

import type { Dtype, QuantizedWeight, Tensor } from '../../lib/tensor/index.js';

export interface GpuCase {
  name: string;
  /** Which measurement of peers.py answers it. */
  kind: 'linear' | 'quantLinear' | 'gated' | 'attention' | 'paged' | 'decoder' | 'qformer' | 'loraMerge' | 'loraApply';
  params: Record<string, number | string | boolean>;
  /** Of one call. */
  flops: number;
  /** Bytes that one call must move at least. */
  bytes: number;
  /** Ops of one call on data of their own; everything they return is freed by the caller's scope. */
  make(data: DeviceData): () => void;
}

/** Makes tensors on the device and keeps account of them. */
export interface DeviceData {
  dtype: Dtype;
  random(shape: readonly number[], dtype?: Dtype, scale?: number): Tensor;
  ints(values: readonly number[], shape?: readonly number[]): Tensor;
  ones(count: number): Tensor;
  /** A random weight [n, k] as codes of `bits` bits with a scale per `group` columns. */
  quantized(n: number, k: number, bits: 4 | 8, group: number): QuantizedWeight;
}

/** Sizes of one run of the cases: those of the models, or small ones that an emulator gets through. */
export interface Sizes {
  vision: { tokens: number; hidden: number; mlp: number; heads: number; headDim: number; batches: number[] };
  decoder: { hidden: number; mlp: number; heads: number; headDim: number; prompts: number[]; batches: number[] };
  contexts: number[];
  /** Columns of a quantised weight that share a scale. */
  group: number;
  qformer: { queries: number; hidden: number; heads: number; batches: number[] };
  rank: number;
}

export const MODEL_SIZES: Sizes = {
  vision: { tokens: 257, hidden: 1408, mlp: 6144, heads: 16, headDim: 88, batches: [1, 8] },
  decoder: { hidden: 4096, mlp: 11008, heads: 32, headDim: 128, prompts: [128, 512, 2048], batches: [1, 4, 16] },
  contexts: [1024, 4096],
  group: 128,
  qformer: { queries: 32, hidden: 768, heads: 12, batches: [1, 8] },
  rank: 16,
};

export const SMOKE_SIZES: Sizes = {
  vision: { tokens: 17, hidden: 48, mlp: 64, heads: 2, headDim: 24, batches: [1] },
  decoder: { hidden: 64, mlp: 96, heads: 2, headDim: 32, prompts: [33], batches: [1, 2] },
  contexts: [40],
  group: 32,
  qformer: { queries: 8, hidden: 48, heads: 2, batches: [1] },
  rank: 4,
};
