// What a checkpoint takes in memory, from its configuration and the headers of its files alone.
//
// On the CPU, matrices are used in place in the mapped file where they keep their dtype; vectors become f32 copies, the stacked keys
// and values of the Q-Former copies, and with another `dtype` everything does. Pages of the mapped part could be dropped by the
// system at any time without loss, but a language model reads every weight for every token: a machine that cannot hold them
// reads the disk instead, thousands of times slower. So they count in full.

import { adapterBytes } from './adapter-memory.js';
import type { CheckpointFiles } from './checkpoint.js';
import type { ModelConfig, TextConfig } from './config.js';
import type { RetrievalConfig } from './retrieval-checkpoint.js';
import type { TensorEntry } from './safetensors.js';

/** A folder with a language model or without. */
export type AnyCheckpoint = CheckpointFiles & { config: ModelConfig | RetrievalConfig };

/** The options of a load that matter here. */
export interface MemoryOptions {
  dtype?: 'auto' | 'f32' | 'f16' | 'bf16' | undefined;
  /** Default: context × batch, within `kvBudget`. */
  kvCacheTokens?: number | undefined;
  kvCacheDtype?: 'f32' | 'f16' | 'bf16' | undefined;
  maxBatchSize?: number | undefined;
  imageCacheBytes?: number | undefined;
  /** Linear layers in groups of 64 columns with a scale; the Q-Former, projections and tables stay as they are. */
  quantize?: 'int8' | 'int4' | undefined;
  /** In which type the device computes. Default f32, as the CPU does; others hold all weights in it, uploaded. */
  activations?: 'f32' | 'f16' | 'bf16' | undefined;
  /** Folders of adapters that will be loaded. */
  adapters?: readonly string[] | undefined;
}

/** Bytes unless said otherwise. */
export interface MemoryEstimate {
  /** Weights used in place in the mapped files. */
  mapped: number;
  /** Weights that are converted, stacked or uploaded. */
  copied: number;
  /** Adapters: their tensors, and copies of the weights that they change. */
  adapters: number;
  /** Of keys and values, for one token of one request; over T5 also for one token of the prompt that cross-attention reads. */
  kvPerToken: number;
  /** Tokens of the pool of keys and values. */
  kvTokens: number;
  kv: number;
  /** The longest request, tokens: prompt, image and answer. */
  context: number;
  /** Node, the library and its scratch memory. */
  base: number;
  /** Image features and freed tensors that are kept for reuse, when their caches are full. */
  caches: number;
  /** Least for one request of full length, at most 2048 tokens (or the pool that was asked for): weights, keys and values, base. */
  required: number;
  /** With every pool and cache full. */
  peak: number;
}

export const DEFAULT_BATCH_SIZE = 16;
export const DEFAULT_IMAGE_CACHE_BYTES = 256 * 2 ** 20;
/** Share of the free memory that the KV pool takes by default at most. */
const KV_SHARE = 0.25;
/** In the run of bench/large 104 MB were not pages of files after loading, 32 MB of them copied weights; the rest is for a step. */
const BASE_BYTES = 128 * 2 ** 20;
/** Freed tensors that the addon keeps. */
const KEPT_BYTES = 256 * 2 ** 20;
const ELEMENT = { f32: 4, f16: 2, bf16: 2 } as const;
const IN_PLACE: Readonly<Record<string, keyof typeof ELEMENT>> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };
const BLOCK = 16;
const QUANTIZED_GROUP = 64;

/** Tokens that a request can count on: the context of every language model of the family. Others have far longer ones. */
const LEAST_TOKENS = 2048;

/** Bound of the default KV pool where `free` bytes are free, of which weights in mapped files will take `mapped`. */
export function kvBudget(free: number, mapped: number): number {
  return Math.max(0, Math.min(free * KV_SHARE, free - mapped));
}

/** The memory that `checkpoint` takes where `free` bytes are available. */
export function estimateCheckpoint(checkpoint: AnyCheckpoint, options: MemoryOptions, free: number): MemoryEstimate {
  const { mapped, copied } = weightBytes(checkpoint.tensors, options);
  const text = 'text' in checkpoint.config ? checkpoint.config.text : undefined;
  const kvPerToken = text === undefined ? 0 : kvBytesPerToken(text, options);
  const context = text?.maxPositionEmbeddings ?? 0;
  const kvTokens = kvPerToken === 0 ? 0 : poolTokens(options, context, kvPerToken, kvBudget(free - copied, mapped));
  const caches = (options.imageCacheBytes ?? DEFAULT_IMAGE_CACHE_BYTES) + KEPT_BYTES;
  const base = BASE_BYTES;
  const adapters = adaptersOf(checkpoint, options);
  const kv = kvTokens * kvPerToken;
  const weights = mapped + copied + adapters;
  const needed = options.kvCacheTokens === undefined ? Math.min(context, LEAST_TOKENS) * kvPerToken : kv;
  return {
    mapped,
    copied,
    adapters,
    kvPerToken,
    kvTokens,
    kv,
    context,
    base,
    caches,
    required: weights + needed + base,
    peak: weights + kv + base + caches,
  };
}

function adaptersOf({ tensors }: AnyCheckpoint, options: MemoryOptions): number {
  const held = (entry: TensorEntry): number => {
    const { elements, bytes } = inMemory(entry, options);
    return elements * bytes;
  };
  return adapterBytes(options.adapters ?? [], tensors, {
    held,
    activationBytes: ELEMENT[options.activations ?? 'f32'],
  });
}

function poolTokens(options: MemoryOptions, context: number, kvPerToken: number, budget: number): number {
  const { kvCacheTokens, maxBatchSize = DEFAULT_BATCH_SIZE } = options;
  const tokens = kvCacheTokens ?? Math.max(BLOCK, Math.min(context * maxBatchSize, Math.floor(budget / kvPerToken)));
  return Math.ceil(tokens / BLOCK) * BLOCK;
}

function kvBytesPerToken(text: TextConfig, { kvCacheDtype, activations = 'f32' }: MemoryOptions): number {
  const heads = 'numKvHeads' in text ? text.numKvHeads : text.numHeads;
  const headDim = 'headDim' in text ? text.headDim : text.hiddenSize / text.numHeads;
  return 2 * text.numLayers * heads * headDim * ELEMENT[kvCacheDtype ?? activations];
}

/** Bytes of the weights as a load holds them. */
export function weightBytes(
  tensors: ReadonlyMap<string, TensorEntry>,
  options: MemoryOptions,
): { mapped: number; copied: number } {
  const sum = { mapped: 0, copied: 0 };
  for (const entry of tensors.values()) {
    const { elements, bytes, isMapped } = inMemory(entry, options);
    sum[isMapped ? 'mapped' : 'copied'] += elements * bytes;
  }
  return sum;
}

/** How one tensor is held: its elements, bytes of each, and whether in the file. */
function inMemory(
  { name, shape, dtype: stored, bytes, order }: TensorEntry,
  { dtype = 'auto', activations = 'f32', quantize }: MemoryOptions,
): { elements: number; bytes: number; isMapped: boolean } {
  const elements = shape.reduce((product, length) => product * length, 1);
  if (isVector(name, shape)) return { elements, bytes: ELEMENT.f32, isMapped: false };
  if (quantize !== undefined && isQuantized(name)) {
    const bits = quantize === 'int8' || /^vision_model\.|lm_head\./.test(name) ? 8 : 4;
    return { elements, bytes: bits / 8 + ELEMENT.bf16 / QUANTIZED_GROUP, isMapped: false };
  }
  if (activations !== 'f32') return { elements, bytes: ELEMENT[activations], isMapped: false };
  const kept = IN_PLACE[stored];
  const wanted = dtype === 'auto' ? kept : dtype;
  const isMapped = kept !== undefined && wanted === kept && order === undefined && !isStacked(name);
  return { elements, bytes: wanted === undefined ? bytes / Math.max(1, elements) : ELEMENT[wanted], isMapped };
}

const isVector = (name: string, shape: readonly number[]): boolean =>
  shape.length < 2 || /(?:^query_tokens|vision_model\.embeddings\.(?:class|position)_embedding)$/.test(name);

/** Matrices inside the layers of the vision tower and of the language model, and its head. */
const isQuantized = (name: string): boolean =>
  /^(?!qformer\.).*(?:\.(?:layers|block)\.\d+|(?:^|\.)lm_head)\./.test(name);

const isStacked = (name: string): boolean => /crossattention\.attention\.(?:key|value)\.weight$/.test(name);
