// The linear family: dense products with their fused prologues and epilogues, quantised weights, adapters. Re-exported by
// ops.ts, where errors and conventions are said. x is [..., k]; a weight is [n, k] of x's dtype, or f32, f16 or bf16 for f32.

import { native } from './binding.js';
import { dtypeCode, type Dtype } from './dtype.js';
import { activations, codeOf, maths, normOf, optional, quantMaths } from './op-arguments.js';
import type { Activation, Math, Norm, QuantMath } from './op-arguments.js';
import { Tensor, handleOf } from './tensor.js';

/** What a linear op does around its product. */
export interface LinearOptions {
  /** [n] f32 */
  bias?: Tensor;
  /** [..., n] of the result's dtype */
  residual?: Tensor;
  /** RMS norm of x before the product, with the bits of `rmsNorm` and then `linear`. */
  norm?: Norm;
  activation?: Activation;
  math?: Math;
  /** Of the result: that of x (the default) or f32. */
  dtype?: Dtype;
}

const resultDtype = (dtype: Dtype | undefined): number => (dtype === undefined ? -1 : dtypeCode(dtype));

/** act(n(x) · wᵀ + bias) + residual, n the norm where there is one. x: [..., k], w: [n, k] → [..., n] */
export function linear(x: Tensor, w: Tensor, options: LinearOptions = {}): Tensor {
  const activation = codeOf('linear: activation', activations, options.activation ?? 'none');
  const math = codeOf('linear: math', maths, options.math ?? 'f32');
  const bias = optional('linear: bias', options.bias);
  const residual = optional('linear: residual', options.residual);
  const [norm, eps] = normOf('linear', options.norm);
  const [xh, wh] = [handleOf('linear: x', x), handleOf('linear: w', w)];
  const dtype = resultDtype(options.dtype);
  return new Tensor(native.linear(xh, wh, bias, residual, norm, eps, activation, math, dtype));
}

/** act(n(x) · wGateᵀ) * (n(x) · wUpᵀ), SiLU by default. x: [..., k], wGate and wUp: [n, k] → [..., n] */
export function gatedLinear(
  x: Tensor,
  wGate: Tensor,
  wUp: Tensor,
  options: { norm?: Norm; activation?: Activation; math?: Math } = {},
): Tensor {
  const activation = codeOf('gatedLinear: activation', activations, options.activation ?? 'silu');
  const math = codeOf('gatedLinear: math', maths, options.math ?? 'f32');
  const [norm, eps] = normOf('gatedLinear', options.norm);
  const [gate, up] = [handleOf('gatedLinear: wGate', wGate), handleOf('gatedLinear: wUp', wUp)];
  return new Tensor(native.gatedLinear(handleOf('gatedLinear: x', x), gate, up, norm, eps, activation, math));
}

/**
 * The front half of a decoder layer's attention: q = rope(n(x) · wqᵀ) as the result, and rope(n(x) · wkᵀ) and n(x) · wvᵀ into
 * their cache slots, in place; the bits of rmsNorm, linear, rope and kvAppend one after the other. x: [tokens, k], wq: [heads ·
 * head_dim, k], wk and wv: [kv_heads · head_dim, k], positions and slotMapping: [tokens] i32, invFreq: [head_dim / 2],
 * caches: [blocks, block_size, kv_heads, head_dim] → [tokens, heads, head_dim]
 */
export function qkvAppend(
  x: Tensor,
  weights: { q: Tensor; k: Tensor; v: Tensor },
  options: {
    norm: Norm;
    positions: Tensor;
    invFreq: Tensor;
    kCache: Tensor;
    vCache: Tensor;
    slotMapping: Tensor;
    math?: Math;
  },
): Tensor {
  const of = (name: string, value: Tensor) => handleOf(`qkvAppend: ${name}`, value);
  const math = codeOf('qkvAppend: math', maths, options.math ?? 'f32');
  const [wq, wk, wv] = [of('q', weights.q), of('k', weights.k), of('v', weights.v)];
  const [norm, positions] = [of('norm.weight', options.norm.weight), of('positions', options.positions)];
  const [invFreq, slots] = [of('invFreq', options.invFreq), of('slotMapping', options.slotMapping)];
  const [kCache, vCache] = [of('kCache', options.kCache), of('vCache', options.vCache)];
  const { eps } = options.norm;
  return new Tensor(
    native.qkvAppend(of('x', x), norm, wq, wk, wv, positions, invFreq, kCache, vCache, slots, eps, math),
  );
}

/** A weight as {@link quantize} stores it: w ≈ q · scale, one scale per row and group of columns. */
export interface QuantizedWeight {
  /** [n, k · bits / 8] u8, in an order of the device's own: for `quantLinear` on the same device, not to be read */
  q: Tensor;
  /** [n, k / group] bf16, likewise */
  scales: Tensor;
}

/**
 * Symmetric group quantisation of a weight: scale = max|w| / 127 (7 for 4 bits) over a group, rounded up to bf16, q = w / scale
 * rounded to nearest even. w: [n, k] f32|f16|bf16; group (64): even, divides k; the CPU is fast with multiples of 64
 */
export function quantize(w: Tensor, options: { bits: 4 | 8; group?: number }): QuantizedWeight {
  const [q, scales] = native.quantize(handleOf('quantize: w', w), options.bits, options.group ?? 64);
  return { q: new Tensor(q), scales: new Tensor(scales) };
}

/** What `quantLinear` does around its product, and how it rounds x. */
export interface QuantLinearOptions extends Omit<LinearOptions, 'math'> {
  math?: QuantMath;
}

/**
 * `linear` with a quantised weight; bits and group size follow from its shapes. On the CPU, where groups are multiples of 64
 * columns, x is rounded with a scale per 64 columns: to 16 bits, or to 8 with `math: 'int8'`. x: [..., k] → [..., n]
 */
export function quantLinear(x: Tensor, w: QuantizedWeight, options: QuantLinearOptions = {}): Tensor {
  const math = codeOf('quantLinear: math', quantMaths, options.math ?? 'f32');
  const activation = codeOf('quantLinear: activation', activations, options.activation ?? 'none');
  const bias = optional('quantLinear: bias', options.bias);
  const residual = optional('quantLinear: residual', options.residual);
  const [norm, eps] = normOf('quantLinear', options.norm);
  const [q, scales] = [handleOf('quantLinear: q', w.q), handleOf('quantLinear: scales', w.scales)];
  const dtype = resultDtype(options.dtype);
  const xh = handleOf('quantLinear: x', x);
  return new Tensor(native.quantLinear(xh, q, scales, bias, residual, norm, eps, activation, math, dtype));
}

/** w + scaling · b·a, rounded once to w's dtype. w: [out, in], a: [rank, in] f32, b: [out, rank] f32 */
export function loraMerge(w: Tensor, a: Tensor, b: Tensor, scaling: number): Tensor {
  return new Tensor(
    native.loraMerge(handleOf('loraMerge: w', w), handleOf('loraMerge: a', a), handleOf('loraMerge: b', b), scaling),
  );
}

/**
 * Adds the adapter of each row, in place: y[r] += scaling[s] · b[s] · (a[s] · x[r]) with s = adapters[r]; a negative one adds
 * nothing, one past the last slot throws. y: [..., n], x: [..., k], a: [slots, rank, k] and b: [slots, n, rank] of one dtype,
 * scaling: [slots] f32, adapters: [rows] i32
 */
export function loraApply(
  y: Tensor,
  x: Tensor,
  lora: { a: Tensor; b: Tensor; scaling: Tensor; adapters: Tensor },
): void {
  const of = (name: string, value: Tensor) => handleOf(`loraApply: ${name}`, value);
  const [a, b, scaling] = [of('a', lora.a), of('b', lora.b), of('scaling', lora.scaling)];
  native.loraApply(of('y', y), of('x', x), a, b, scaling, of('adapters', lora.adapters));
}

/**
 * The ViT's input: patch convolution, class token, positions. pixels: [batch, channels, height, width],
 * w: [dim, channels, patch, patch], bias and classEmbedding: [dim], positions: [1 + grid, dim] →
 * [batch · (1 + grid), dim] of `dtype` (f32)
 */
export function patchEmbedding(
  pixels: Tensor,
  w: Tensor,
  options: { bias?: Tensor; classEmbedding: Tensor; positions: Tensor; dtype?: Dtype; math?: Math },
): Tensor {
  const classEmbedding = handleOf('patchEmbedding: classEmbedding', options.classEmbedding);
  const positions = handleOf('patchEmbedding: positions', options.positions);
  const bias = optional('patchEmbedding: bias', options.bias);
  const math = codeOf('patchEmbedding: math', maths, options.math ?? 'f32');
  const [x, weight] = [handleOf('patchEmbedding: pixels', pixels), handleOf('patchEmbedding: w', w)];
  return new Tensor(
    native.patchEmbedding(x, weight, bias, classEmbedding, positions, dtypeCode(options.dtype ?? 'f32'), math),
  );
}
