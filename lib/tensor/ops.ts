// Typed wrappers of the native ops. Activations are of one dtype per call: f32, and f16 or bf16 on devices that compute in
// them. Results are new tensors of the current scope unless an op says "in place". Shapes are checked natively, with messages of the form "rmsNorm: weight must be [2560], got [2048]".
// Errors of every op: SHAPE, DTYPE, DEVICE, STALE_TENSOR, INVALID_ARGUMENT, OUT_OF_MEMORY.

import { native } from './binding.js';
import { dtypeCode, type Dtype } from './dtype.js';
import { activations, codeOf, masks, maths, optional, type Activation, type Mask, type Math } from './op-arguments.js';
import { Tensor, handleOf } from './tensor.js';

export type { Activation, Mask, Math, Norm, QuantMath } from './op-arguments.js';
export * from './linear-ops.js';

/** (x − mean) / √(var + eps) · weight + bias over the last axis. x: [..., c], weight and bias: [c] */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor {
  const scale = handleOf('layerNorm: weight', weight);
  return new Tensor(native.layerNorm(handleOf('layerNorm: x', x), scale, handleOf('layerNorm: bias', bias), eps));
}

/** x / √(mean(x²) + eps) · weight over the last axis. x: [..., c], weight: [c] */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  return new Tensor(native.rmsNorm(handleOf('rmsNorm: x', x), handleOf('rmsNorm: weight', weight), eps));
}

/** Softmax over the last axis. */
export function softmax(x: Tensor): Tensor {
  return new Tensor(native.softmax(handleOf('softmax: x', x), 0));
}

/** Log-softmax over the last axis. */
export function logSoftmax(x: Tensor): Tensor {
  return new Tensor(native.softmax(handleOf('logSoftmax: x', x), 1));
}

/** Rotary embedding, rotate-half pairs. x: [tokens, heads, head_dim], positions: [tokens] i32, invFreq: [head_dim / 2] */
export function rope(x: Tensor, positions: Tensor, invFreq: Tensor): Tensor {
  const at = handleOf('rope: positions', positions);
  return new Tensor(native.rope(handleOf('rope: x', x), at, handleOf('rope: invFreq', invFreq)));
}

/**
 * What attention adds to its scaled scores by distance: the query at position p and key j add table[h][j − p + origin]; beyond
 * the table its first or last value. table: [heads, span] f32, origin: the column of distance 0.
 */
export interface DistanceBias {
  table: Tensor;
  origin: number;
}

/**
 * Attention over packed sequences. q: [tokens_q, heads, head_dim], k and v: [tokens_k, kv_heads, head_dim],
 * cuSeqlensQ and cuSeqlensK: [batch + 1] i32 → [tokens_q, heads, head_dim]. For the bias, query i of lq stands at position
 * i + lk − lq of its lk keys. `math: 'bf16'` lets q, k, v and the softmax weights be rounded to bf16 where that is faster.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: {
    cuSeqlensQ: Tensor;
    cuSeqlensK: Tensor;
    scale: number;
    mask?: Mask;
    numQuery?: number;
    bias?: DistanceBias;
    math?: Math;
  },
): Tensor {
  const bias = optional('attention: bias', options.bias?.table);
  const cuSeqlensQ = handleOf('attention: cuSeqlensQ', options.cuSeqlensQ);
  const cuSeqlensK = handleOf('attention: cuSeqlensK', options.cuSeqlensK);
  const mask = codeOf('attention: mask', masks, options.mask ?? 'full');
  const [qh, kh, vh] = [handleOf('attention: q', q), handleOf('attention: k', k), handleOf('attention: v', v)];
  const math = codeOf('attention: math', maths, options.math ?? 'f32');
  const { scale, numQuery = 0 } = options;
  const origin = options.bias?.origin ?? 0;
  return new Tensor(native.attention(qh, kh, vh, cuSeqlensQ, cuSeqlensK, bias, origin, scale, mask, numQuery, math));
}

/** Writes new keys and values into the paged cache, in place. k and v: [tokens, kv_heads, head_dim], slotMapping: [tokens] i32 */
export function kvAppend(k: Tensor, v: Tensor, kCache: Tensor, vCache: Tensor, slotMapping: Tensor): void {
  const slots = handleOf('kvAppend: slotMapping', slotMapping);
  const [kh, vh] = [handleOf('kvAppend: k', k), handleOf('kvAppend: v', v)];
  native.kvAppend(kh, vh, handleOf('kvAppend: kCache', kCache), handleOf('kvAppend: vCache', vCache), slots);
}

/**
 * Causal attention of new tokens over the paged cache. q: [tokens, heads, head_dim], caches: [blocks, block_size, kv_heads, head_dim],
 * cuSeqlensQ: [batch + 1], blockTable: [batch, max_blocks], contextLens: [batch] i32 (new tokens included) → like q. math as in
 * {@link attention}.
 */
export function pagedAttention(
  q: Tensor,
  kCache: Tensor,
  vCache: Tensor,
  options: {
    cuSeqlensQ: Tensor;
    blockTable: Tensor;
    contextLens: Tensor;
    scale: number;
    bias?: DistanceBias;
    math?: Math;
  },
): Tensor {
  const cuSeqlensQ = handleOf('pagedAttention: cuSeqlensQ', options.cuSeqlensQ);
  const blockTable = handleOf('pagedAttention: blockTable', options.blockTable);
  const contextLens = handleOf('pagedAttention: contextLens', options.contextLens);
  const qh = handleOf('pagedAttention: q', q);
  const [kh, vh] = [handleOf('pagedAttention: kCache', kCache), handleOf('pagedAttention: vCache', vCache)];
  const bias = optional('pagedAttention: bias', options.bias?.table);
  const math = codeOf('pagedAttention: math', maths, options.math ?? 'f32');
  const origin = options.bias?.origin ?? 0;
  return new Tensor(
    native.pagedAttention(qh, kh, vh, cuSeqlensQ, blockTable, contextLens, bias, origin, options.scale, math),
  );
}

/**
 * One cross-attention block of the Q-Former: layerNorm(x + attention(x · wqᵀ + bq, k, v) · woᵀ + bo) for the first numQuery rows
 * of every sequence; the other rows are copied. x: [batch, rows, hidden], wq and wo: [hidden, hidden], biases and norm: [hidden],
 * k and v: [batch · keys, heads, head_dim], views with one row stride → like x
 */
export function qformerCrossAttention(
  x: Tensor,
  k: Tensor,
  v: Tensor,
  options: {
    query: { weight: Tensor; bias: Tensor };
    output: { weight: Tensor; bias: Tensor };
    norm: { weight: Tensor; bias: Tensor; eps: number };
    numQuery: number;
    scale: number;
    math?: Math;
  },
): Tensor {
  const of = (name: string, value: Tensor) => handleOf(`qformerCrossAttention: ${name}`, value);
  const { query, output, norm } = options;
  const math = codeOf('qformerCrossAttention: math', maths, options.math ?? 'f32');
  const [wq, bq] = [of('query.weight', query.weight), of('query.bias', query.bias)];
  const [wo, bo] = [of('output.weight', output.weight), of('output.bias', output.bias)];
  const [gamma, beta] = [of('norm.weight', norm.weight), of('norm.bias', norm.bias)];
  const [xh, kh, vh] = [of('x', x), of('k', k), of('v', v)];
  const { numQuery, scale } = options;
  return new Tensor(
    native.qformerCrossAttention(xh, wq, bq, kh, vh, wo, bo, gamma, beta, numQuery, scale, norm.eps, math),
  );
}

/**
 * Rows of a table as `dtype` (f32). ids: [tokens] i32, table: [rows, cols] f32|f16|bf16 → [tokens, cols]. An id out of range
 * throws: at once on the CPU, with the next read of any tensor on a GPU.
 */
export function embedding(ids: Tensor, table: Tensor, dtype: Dtype = 'f32'): Tensor {
  const rows = handleOf('embedding: table', table);
  return new Tensor(native.embedding(handleOf('embedding: ids', ids), rows, dtypeCode(dtype)));
}

/** x[ids], keeping the dtype. x: [rows, cols], ids: [tokens] i32 → [tokens, cols] */
export function gatherRows(x: Tensor, ids: Tensor): Tensor {
  return new Tensor(native.gatherRows(handleOf('gatherRows: x', x), handleOf('gatherRows: ids', ids)));
}

/** dst[ids] = src, in place; ids must be distinct. dst: [rows, cols], ids: [tokens] i32, src: [tokens, cols] */
export function scatterRows(dst: Tensor, ids: Tensor, src: Tensor): void {
  native.scatterRows(
    handleOf('scatterRows: dst', dst),
    handleOf('scatterRows: ids', ids),
    handleOf('scatterRows: src', src),
  );
}

function binary(name: string, op: number): (a: Tensor, b: Tensor) => Tensor {
  return (a, b) => new Tensor(native.binary(handleOf(`${name}: a`, a), handleOf(`${name}: b`, b), op));
}

/** a + b. a: [..., c]; b: the same shape, or [c] for every row */
export const add = binary('add', 0);
/** a − b */
export const sub = binary('sub', 1);
/** a · b */
export const mul = binary('mul', 2);
/** a / b */
export const div = binary('div', 3);

/** An activation function, elementwise. */
export function activation(x: Tensor, kind: Activation): Tensor {
  return new Tensor(native.unary(handleOf('activation: x', x), codeOf('activation', activations, kind), 1, 0));
}

/** x · scale + shift */
export function affine(x: Tensor, scale: number, shift = 0): Tensor {
  return new Tensor(native.unary(handleOf('affine: x', x), 0, scale, shift));
}

/** Pillow's bicubic resize, bit for bit. x: [height, width, 3] u8 → [outHeight, outWidth, 3] u8 */
export function resizeBicubic(x: Tensor, outHeight: number, outWidth: number): Tensor {
  return new Tensor(native.resizeBicubic(handleOf('resizeBicubic: x', x), outHeight, outWidth));
}

/** (x · rescale − mean) / std. x: [height, width, 3] u8 → [3, height, width] */
export function normalizeImage(
  x: Tensor,
  options: { rescale: number; mean: readonly [number, number, number]; std: readonly [number, number, number] },
): Tensor {
  return new Tensor(
    native.normalizeImage(handleOf('normalizeImage: x', x), options.rescale, options.mean, options.std),
  );
}

/**
 * Repetition penalty on every id of a row's history, then −inf for its banned ids, in place. logits: [batch, vocab],
 * history and banned: flat i32 ids with offsets cuHistory and cuBanned [batch + 1], repetitionPenalty: [batch], 1 = off
 */
export function penalizeLogits(
  logits: Tensor,
  options: { history: Tensor; cuHistory: Tensor; banned: Tensor; cuBanned: Tensor; repetitionPenalty: Tensor },
): void {
  const history = handleOf('penalizeLogits: history', options.history);
  const cuHistory = handleOf('penalizeLogits: cuHistory', options.cuHistory);
  const banned = handleOf('penalizeLogits: banned', options.banned);
  const cuBanned = handleOf('penalizeLogits: cuBanned', options.cuBanned);
  const penalty = handleOf('penalizeLogits: repetitionPenalty', options.repetitionPenalty);
  native.penalizeLogits(handleOf('penalizeLogits: logits', logits), history, cuHistory, banned, cuBanned, penalty);
}

/**
 * Temperature, then top-k, top-p and min-p; dropped entries become −inf. logits: [batch, vocab], parameters: [batch].
 * None of the three leaves fewer than `minTokensToKeep` entries (default 1; beam search asks for more).
 */
export function warpLogits(
  logits: Tensor,
  options: { temperature: Tensor; topK: Tensor; topP: Tensor; minP: Tensor; minTokensToKeep?: number },
): Tensor {
  const temperature = handleOf('warpLogits: temperature', options.temperature);
  const [k, p] = [handleOf('warpLogits: topK', options.topK), handleOf('warpLogits: topP', options.topP)];
  const minP = handleOf('warpLogits: minP', options.minP);
  const x = handleOf('warpLogits: logits', logits);
  return new Tensor(native.warpLogits(x, temperature, k, p, minP, options.minTokensToKeep ?? 1));
}

/**
 * One id per row: the arg max where temperature is 0, else drawn with Philox4x32-10 (key seed, counter step); −1 for a row with a
 * NaN, +∞ or nothing finite. scores: [batch, vocab], temperature: [batch], seed: [batch, 2] i32, step: [batch] i32 → [batch] i32
 */
export function sample(scores: Tensor, options: { temperature: Tensor; seed: Tensor; step: Tensor }): Tensor {
  const temperature = handleOf('sample: temperature', options.temperature);
  const [seed, step] = [handleOf('sample: seed', options.seed), handleOf('sample: step', options.step)];
  return new Tensor(native.sample(handleOf('sample: scores', scores), temperature, seed, step));
}

/** The k largest entries of each row, descending. x: [rows, cols] → values [rows, k], ids [rows, k] i32 */
export function topK(x: Tensor, k: number): { values: Tensor; ids: Tensor } {
  const [values, ids] = native.topK(handleOf('topK: x', x), k);
  return { values: new Tensor(values), ids: new Tensor(ids) };
}
