// Every op that computes in 16 bits, against the CPU's f32 op on the same (already rounded) inputs: on a device that computes in
// them, f16 and bf16 may differ from it by the rounding of the result and of what a kernel rounds on the way, nothing more.

import { describe, it } from 'vitest';
import { Tensor, ops, scope, type Dtype } from '../lib/tensor/index.js';
import { activationDtypes, expectDevices, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits } from './support/fixtures.js';
import { noise } from './support/noise.js';

expectDevices();

const halves = testDevices.flatMap((device) =>
  activationDtypes(device)
    .filter((dtype) => dtype !== 'f32')
    .map((dtype) => ({ device, dtype })),
);

// Distance of neighbouring values just above 1.
const ulps: Partial<Record<Dtype, number>> = { f16: 2 ** -10, bf16: 2 ** -7 };

/** The same values on the device in its dtype, and on the CPU in f32. */
interface Twin {
  own: Tensor;
  cpu: Tensor;
}

describe.each(halves)('on $device in $dtype', ({ device, dtype }) => {
  expectNoLeaks();
  const ulp = ulps[dtype]!;

  /** Random values around `scale`, rounded to `type`. */
  const twin = (shape: number[], seed: number, type: Dtype = dtype, scale = 1): Twin => {
    const count = shape.reduce((a, b) => a * b, 1);
    const values = noise(count, seed).map((value) => value * scale);
    const rounded = Tensor.fromArray(values, shape).cast(type);
    const own = type === 'f32' ? values : rounded.toArray();
    return { own: Tensor.fromArray(own, shape, { dtype: type, device }), cpu: rounded.cast('f32') };
  };
  const weight = (shape: number[], seed: number): Twin => twin(shape, seed, dtype, shape.at(-1)! ** -0.5);
  const ints = (values: number[], shape = [values.length]): Twin => ({
    own: Tensor.fromArray(values, shape, { dtype: 'i32', device }),
    cpu: Tensor.fromArray(values, shape, { dtype: 'i32' }),
  });
  /** Runs on both sides and compares within `steps` roundings. */
  const compare = (run: (side: keyof Twin) => Tensor, steps = 1): void => {
    const [own, cpu] = [run('own'), run('cpu')];
    const unit = steps * ulp;
    expectClose(own.toFloat32(), cpu.toFloat32(), { atol: unit / 2, rtol: unit });
  };

  it.each([
    [1, 33, 72],
    [5, 64, 88],
    [16, 40, 257],
    [17, 96, 64],
    [70, 130, 176],
  ])('linear: %d rows, %d × %d', (m, n, k) =>
    scope(() => {
      const [x, w, residual] = [twin([m, k], 1), weight([n, k], 2), twin([m, n], 3)];
      const bias = twin([n], 4, 'f32');
      compare((s) => ops.linear(x[s], w[s]));
      compare((s) => ops.linear(x[s], w[s], { bias: bias[s], activation: 'gelu', residual: residual[s] }), 2);
      const f32 = (s: keyof Twin) => ops.linear(x[s], w[s], { dtype: 'f32' });
      // f32 sums of 257 products at most
      expectClose(f32('own').toFloat32(), f32('cpu').toFloat32(), { atol: 2e-5, rtol: 1e-5 });
      const [gate, up] = [weight([n, k], 5), weight([n, k], 6)];
      compare((s) => ops.gatedLinear(x[s], gate[s], up[s]), 2);
    }),
  );

  it.each([1, 77, 176])('layerNorm, rmsNorm and rope, %d columns', (cols) =>
    scope(() => {
      const [x, w, b] = [twin([9, cols], 11), twin([cols], 12, 'f32'), twin([cols], 13, 'f32')];
      if (cols > 1) compare((s) => ops.layerNorm(x[s], w[s], b[s], 1e-6), 2);
      compare((s) => ops.rmsNorm(x[s], w[s], 1e-6), 2);
      const [tokens, positions] = [twin([3, 2, 40], 14), ints([0, 7, 129])];
      const invFreq = twin([20], 15, 'f32');
      compare((s) => ops.rope(tokens[s], positions[s], invFreq[s]), 2);
    }),
  );

  it.each([
    [64, 2, 2, 'full'],
    [80, 2, 1, 'causal'],
    [88, 1, 1, 'full'],
    [96, 2, 1, 'itc'],
    [128, 2, 2, 'itg'],
    [40, 4, 2, 'causal'],
  ] as const)('attention: head_dim %d, %d heads on %d, %s', (headDim, heads, kvHeads, mask) =>
    scope(() => {
      const lengths = [0, 3, 20, 90];
      const cu = ints(lengths);
      const q = twin([90, heads, headDim], 21);
      const [k, v] = [twin([90, kvHeads, headDim], 22), twin([90, kvHeads, headDim], 23)];
      const scale = headDim ** -0.5;
      // probabilities are rounded before they meet v
      compare(
        (s) => ops.attention(q[s], k[s], v[s], { cuSeqlensQ: cu[s], cuSeqlensK: cu[s], scale, mask, numQuery: 2 }),
        3,
      );
    }),
  );

  it.each([
    [64, 2, 2],
    [80, 2, 1],
    [128, 4, 1],
    [16, 8, 2],
  ])('kvAppend and pagedAttention: head_dim %d, %d heads on %d', (headDim, heads, kvHeads) =>
    scope(() => {
      const [tokens, blockSize] = [75, 16];
      const q = twin([tokens + 2, heads, headDim], 31);
      const [k, v] = [twin([tokens, kvHeads, headDim], 32), twin([tokens, kvHeads, headDim], 33)];
      const blocks = [4, 0, 5, 2, 1];
      const slots = ints(Array.from({ length: tokens }, (_, t) => blocks[t >> 4]! * blockSize + (t % blockSize)));
      const cuSeqlensQ = ints([0, 1, 2, 2 + tokens]);
      const blockTable = ints([...blocks, ...blocks, ...blocks], [3, 5]);
      const contextLens = ints([tokens, 17, tokens]);
      const run = (s: keyof Twin): Tensor => {
        const cache = () =>
          Tensor.zeros([6, blockSize, kvHeads, headDim], s === 'own' ? { device, dtype } : { dtype: 'f32' });
        const [kCache, vCache] = [cache(), cache()];
        ops.kvAppend(k[s], v[s], kCache, vCache, slots[s]);
        return ops.pagedAttention(q[s], kCache, vCache, {
          cuSeqlensQ: cuSeqlensQ[s],
          blockTable: blockTable[s],
          contextLens: contextLens[s],
          scale: headDim ** -0.5,
        });
      };
      compare(run, 3);
    }),
  );

  it('embedding, gatherRows and scatterRows move and convert exactly', () =>
    scope(() => {
      const [table, ids] = [twin([11, 24], 41), ints([10, 0, 3, 3])];
      const exact = (a: Tensor, b: Tensor) => expectSameBits(a.toFloat32(), b.toFloat32());
      exact(ops.embedding(ids.own, table.own, dtype), ops.embedding(ids.cpu, table.cpu));
      exact(ops.embedding(ids.own, table.own), ops.embedding(ids.cpu, table.cpu));
      exact(ops.gatherRows(table.own, ids.own), ops.gatherRows(table.cpu, ids.cpu));
      const [source, places] = [twin([2, 24], 42), ints([7, 1])];
      ops.scatterRows(table.own, places.own, source.own);
      ops.scatterRows(table.cpu, places.cpu, source.cpu);
      exact(table.own, table.cpu);
    }));

  it('add, sub, mul, div, activations and affine', () =>
    scope(() => {
      const [a, b, row] = [twin([5, 33], 51), twin([5, 33], 52), twin([33], 53)];
      for (const op of [ops.add, ops.sub, ops.mul]) {
        compare((s) => op(a[s], b[s]));
        compare((s) => op(a[s], row[s]));
      }
      const far = ops.affine(b.cpu, 0.25, 2).cast(dtype);
      const divisor = { cpu: far.cast('f32'), own: Tensor.fromArray(far.toArray(), [5, 33], { dtype, device }) };
      compare((s) => ops.div(a[s], divisor[s]));
      for (const kind of ['gelu', 'gelu_tanh', 'relu', 'silu'] as const) compare((s) => ops.activation(a[s], kind));
      compare((s) => ops.affine(a[s], 0.5, 0.25));
    }));

  it('patchEmbedding rounds the pixels first', () =>
    scope(() => {
      const [pixels, w] = [twin([2, 3, 28, 42], 61), weight([48, 3, 14, 14], 62)];
      const scaled = {
        own: ops.affine(w.own, 14 ** -1),
        cpu: ops
          .affine(w.cpu, 14 ** -1)
          .cast(dtype)
          .cast('f32'),
      };
      const wide = { own: pixels.own.cast('f32'), cpu: pixels.cpu };
      const [bias, classEmbedding, positions] = [
        twin([48], 63, 'f32'),
        twin([48], 64, 'f32'),
        twin([7, 48], 65, 'f32'),
      ];
      compare(
        (s) =>
          ops.patchEmbedding(wide[s], scaled[s], {
            bias: bias[s],
            classEmbedding: classEmbedding[s],
            positions: positions[s],
            dtype: s === 'own' ? dtype : 'f32',
          }),
        2,
      );
    }));
});
