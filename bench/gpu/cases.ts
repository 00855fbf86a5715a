// The cases: the products and attentions of ViT-g, Q-Former and LLaMA-7B, a decoder layer's five ops, quantised weights,
// adapters.

import { ops } from '../../lib/tensor/index.js';
import type { Activation } from '../../lib/tensor/index.js';
import type { DeviceData, GpuCase, Sizes } from './case.js';

const BLOCK_SIZE = 16;
const EPS = 1e-6;

/** Bytes of an element of x's dtype. */
type Width = 2 | 4;

export function gpuCases(sizes: Sizes, width: Width): GpuCase[] {
  const { vision, decoder, contexts, group, qformer, rank } = sizes;
  return [
    ...vision.batches.flatMap((batch) => visionCases(vision, batch, width)),
    ...decoder.prompts.flatMap((tokens) => prefillCases(decoder, tokens, width)),
    ...decoder.batches.flatMap((batch) => decodeCases(decoder, batch, contexts, width)),
    ...[...decoder.batches, decoder.prompts.at(-1)!].flatMap((rows) => quantCases(decoder, rows, group, width)),
    ...qformer.batches.map((batch) => qformerCase(qformer, vision.tokens, batch, width)),
    loraMergeCase(decoder.hidden, rank, width),
    ...decoder.batches.map((batch) => loraApplyCase(decoder.hidden, rank, batch, width)),
  ];
}

function visionCases(sizes: Sizes['vision'], batch: number, width: Width): GpuCase[] {
  const { tokens, hidden, mlp, heads, headDim } = sizes;
  const m = batch * tokens;
  const of = `ViT, ${batch} image${batch > 1 ? 's' : ''}`;
  return [
    linearCase(`${of}: qkv`, m, 3 * hidden, hidden, width, { bias: true }),
    linearCase(`${of}: projection`, m, hidden, hidden, width, { bias: true, residual: true }),
    linearCase(`${of}: fc1 + GELU`, m, mlp, hidden, width, { bias: true, activation: 'gelu' }),
    linearCase(`${of}: fc2`, m, hidden, mlp, width, { bias: true, residual: true }),
    attentionCase(`${of}: attention`, batch, tokens, heads, headDim, 'full', width),
  ];
}

function prefillCases(sizes: Sizes['decoder'], tokens: number, width: Width): GpuCase[] {
  const { hidden, mlp, heads, headDim } = sizes;
  const of = `prefill ${tokens}`;
  return [
    linearCase(`${of}: output projection`, tokens, hidden, hidden, width, { residual: true }),
    gatedCase(`${of}: gate, up, SiLU·mul`, tokens, mlp, hidden, width),
    linearCase(`${of}: down`, tokens, hidden, mlp, width, { residual: true }),
    attentionCase(`${of}: attention`, 1, tokens, heads, headDim, 'causal', width),
  ];
}

function decodeCases(sizes: Sizes['decoder'], batch: number, contexts: readonly number[], width: Width): GpuCase[] {
  const { hidden, mlp, heads, headDim } = sizes;
  const of = `decode ${batch}`;
  return [
    linearCase(`${of}: output projection`, batch, hidden, hidden, width, { residual: true }),
    gatedCase(`${of}: gate, up, SiLU·mul`, batch, mlp, hidden, width),
    linearCase(`${of}: down`, batch, hidden, mlp, width, { residual: true }),
    ...contexts.flatMap((context) => [
      pagedCase(`${of}: attention over ${context}`, batch, context, heads, headDim, width),
      decoderCase(`${of}: whole layer, context ${context}`, batch, context, sizes, width),
    ]),
  ];
}

interface Epilogue {
  bias?: boolean;
  residual?: boolean;
  activation?: Activation;
}

function linearCase(name: string, m: number, n: number, k: number, width: Width, epilogue: Epilogue): GpuCase {
  return {
    name: `${name} [${m}, ${k}] × [${n}, ${k}]ᵀ`,
    kind: 'linear',
    params: {
      m,
      n,
      k,
      bias: !!epilogue.bias,
      residual: !!epilogue.residual,
      activation: epilogue.activation ?? 'none',
    },
    flops: 2 * m * n * k,
    bytes: width * (n * k + m * k + m * n * (epilogue.residual ? 2 : 1)),
    make(data) {
      const [x, w] = [data.random([m, k]), data.random([n, k], data.dtype, k ** -0.5)];
      const options = {
        ...(epilogue.bias && { bias: data.random([n], 'f32') }),
        ...(epilogue.residual && { residual: data.random([m, n]) }),
        ...(epilogue.activation && { activation: epilogue.activation }),
      };
      return () => void ops.linear(x, w, options);
    },
  };
}

function quantCases(sizes: Sizes['decoder'], m: number, group: number, width: Width): GpuCase[] {
  const { hidden, mlp } = sizes;
  return ([8, 4] as const).flatMap((bits) => [
    quantLinearCase(m, hidden, hidden, bits, group, width),
    quantLinearCase(m, hidden, mlp, bits, group, width),
  ]);
}

function quantLinearCase(m: number, n: number, k: number, bits: 4 | 8, group: number, width: Width): GpuCase {
  return {
    name: `int${bits} weights in groups of ${group} [${m}, ${k}] × [${n}, ${k}]ᵀ`,
    kind: 'quantLinear',
    params: { m, n, k, bits, group },
    flops: 2 * m * n * k,
    bytes: n * k * (bits / 8 + 2 / group) + width * m * (k + 2 * n),
    make(data) {
      const [x, residual] = [data.random([m, k]), data.random([m, n])];
      const w = data.quantized(n, k, bits, group);
      return () => void ops.quantLinear(x, w, { residual });
    },
  };
}

function gatedCase(name: string, m: number, n: number, k: number, width: Width): GpuCase {
  return {
    name: `${name} [${m}, ${k}] × 2 [${n}, ${k}]ᵀ`,
    kind: 'gated',
    params: { m, n, k },
    flops: 4 * m * n * k,
    bytes: width * (2 * n * k + m * k + m * n),
    make(data) {
      const x = data.random([m, k]);
      const [gate, up] = [data.random([n, k], data.dtype, k ** -0.5), data.random([n, k], data.dtype, k ** -0.5)];
      const norm = { weight: data.ones(k), eps: EPS };
      return () => void ops.gatedLinear(x, gate, up, { norm });
    },
  };
}

function attentionCase(
  name: string,
  batch: number,
  tokens: number,
  heads: number,
  headDim: number,
  mask: 'full' | 'causal',
  width: Width,
): GpuCase {
  const rows = batch * tokens;
  return {
    name: `${name} ${batch} × ${tokens}, ${heads} heads of ${headDim}, ${mask}`,
    kind: 'attention',
    params: { batch, tokens, heads, headDim, causal: mask === 'causal' },
    flops: (4 * batch * tokens * tokens * heads * headDim) / (mask === 'causal' ? 2 : 1),
    bytes: 4 * width * rows * heads * headDim,
    make(data) {
      const [q, k, v] = [0, 1, 2].map(() => data.random([rows, heads, headDim]));
      const cuSeqlens = data.ints(Array.from({ length: batch + 1 }, (_, i) => i * tokens));
      const options = { cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens, scale: headDim ** -0.5, mask };
      return () => void ops.attention(q!, k!, v!, options);
    },
  };
}

/** A paged cache that holds `context` tokens for each sequence, its blocks out of order as in a cache in use. */
function pagedCache(data: DeviceData, batch: number, context: number, heads: number, headDim: number) {
  const perSequence = Math.ceil(context / BLOCK_SIZE);
  const blocks = batch * perSequence;
  const shape = [blocks, BLOCK_SIZE, heads, headDim];
  const order = Array.from({ length: blocks }, (_, i) => blocks - 1 - i);
  const last = Array.from({ length: batch }, (_, b) => order[b * perSequence + perSequence - 1]! * BLOCK_SIZE);
  return {
    kCache: data.random(shape),
    vCache: data.random(shape),
    cuSeqlensQ: data.ints(Array.from({ length: batch + 1 }, (_, i) => i)),
    blockTable: data.ints(order, [batch, perSequence]),
    contextLens: data.ints(Array.from({ length: batch }, () => context)),
    slotMapping: data.ints(last.map((slot) => slot + ((context - 1) % BLOCK_SIZE))),
    positions: data.ints(Array.from({ length: batch }, () => context - 1)),
    scale: headDim ** -0.5,
  };
}

function pagedCase(
  name: string,
  batch: number,
  context: number,
  heads: number,
  headDim: number,
  width: Width,
): GpuCase {
  return {
    name: `${name}, ${heads} heads of ${headDim}`,
    kind: 'paged',
    params: { batch, context, heads, headDim },
    flops: 4 * batch * context * heads * headDim,
    bytes: 2 * width * batch * context * heads * headDim,
    make(data) {
      const q = data.random([batch, heads, headDim]);
      const { kCache, vCache, ...options } = pagedCache(data, batch, context, heads, headDim);
      return () => void ops.pagedAttention(q, kCache, vCache, options);
    },
  };
}

function decoderCase(name: string, batch: number, context: number, sizes: Sizes['decoder'], width: Width): GpuCase {
  const { hidden, mlp, heads, headDim } = sizes;
  const weights = 4 * hidden * hidden + 3 * hidden * mlp;
  return {
    name: `${name}, batch ${batch}`,
    kind: 'decoder',
    params: { batch, context, hidden, mlp, heads, headDim },
    flops: 2 * batch * weights + 4 * batch * context * hidden,
    bytes: width * (weights + 2 * batch * context * hidden),
    make(data) {
      const weight = (n: number, k: number) => data.random([n, k], data.dtype, k ** -0.5);
      const [q, k, v, o] = [0, 1, 2, 3].map(() => weight(hidden, hidden));
      const [gate, up, down] = [weight(mlp, hidden), weight(mlp, hidden), weight(hidden, mlp)];
      const norm = { weight: data.ones(hidden), eps: EPS };
      const x = data.random([batch, hidden]);
      const invFreq = data.random([headDim / 2], 'f32');
      const cache = pagedCache(data, batch, context, heads, headDim);
      return () => {
        const query = ops.qkvAppend(x, { q: q!, k: k!, v: v! }, { norm, invFreq, ...cache });
        const attended = ops.pagedAttention(query, cache.kCache, cache.vCache, cache).reshape([batch, hidden]);
        const middle = ops.linear(attended, o!, { residual: x });
        ops.linear(ops.gatedLinear(middle, gate, up, { norm }), down, { residual: middle });
      };
    },
  };
}

function qformerCase(sizes: Sizes['qformer'], keys: number, batch: number, width: Width): GpuCase {
  const { queries, hidden, heads } = sizes;
  const headDim = hidden / heads;
  const rows = batch * queries;
  return {
    name: `Q-Former cross-attention block, batch ${batch}`,
    kind: 'qformer',
    params: { batch, queries, keys, hidden, heads },
    flops: 4 * rows * hidden * hidden + 4 * rows * keys * hidden,
    bytes: width * (2 * hidden * hidden + 2 * rows * hidden + 2 * batch * keys * hidden),
    make(data) {
      const x = data.random([batch, queries, hidden]);
      const kv = data.random([batch * keys, 2, heads, headDim]);
      const [k, v] = [kv.select(1, 0), kv.select(1, 1)];
      const dense = () => ({
        weight: data.random([hidden, hidden], data.dtype, hidden ** -0.5),
        bias: data.random([hidden], 'f32'),
      });
      const norm = { weight: data.ones(hidden), bias: data.random([hidden], 'f32'), eps: 1e-12 };
      const options = { query: dense(), output: dense(), norm, numQuery: queries, scale: headDim ** -0.5 };
      return () => void ops.qformerCrossAttention(x, k, v, options);
    },
  };
}

function loraMergeCase(size: number, rank: number, width: Width): GpuCase {
  return {
    name: `LoRA merge, rank ${rank} into [${size}, ${size}]`,
    kind: 'loraMerge',
    params: { n: size, k: size, rank },
    flops: 2 * size * size * rank,
    bytes: 2 * width * size * size + 8 * size * rank,
    make(data) {
      const w = data.random([size, size]);
      const [a, b] = [data.random([rank, size], 'f32'), data.random([size, rank], 'f32')];
      return () => void ops.loraMerge(w, a, b, 0.5);
    },
  };
}

function loraApplyCase(size: number, rank: number, batch: number, width: Width): GpuCase {
  const slots = Math.min(batch, 4);
  return {
    name: `LoRA apply, rank ${rank}, ${slots} adapter${slots > 1 ? 's' : ''} over ${batch} rows of ${size}`,
    kind: 'loraApply',
    params: { m: batch, n: size, k: size, rank, slots },
    flops: 4 * batch * size * rank,
    bytes: width * (2 * slots * rank * size + 3 * batch * size),
    make(data) {
      const [x, y] = [data.random([batch, size]), data.random([batch, size])];
      const [a, b] = [data.random([slots, rank, size]), data.random([slots, size, rank])];
      const scaling = data.ones(slots);
      const adapters = data.ints(Array.from({ length: batch }, (_, i) => i % slots));
      return () => ops.loraApply(y, x, { a, b, scaling, adapters });
    },
  };
}
