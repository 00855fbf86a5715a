// Ops that fuse or compress others, against the ops they stand for: on the CPU bit for bit, on a GPU within the rounding of
// the steps that the fused kernel does not store. And row by row: a row's bits do not depend on the rows beside it.

import { describe, expect, it } from 'vitest';
import { Tensor, ops, scope, type Dtype } from '../lib/tensor/index.js';
import { activationDtypes, expectDevices, isChecked, settled, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits } from './support/fixtures.js';
import { noise } from './support/noise.js';
import { inUnits, isRounded, roundEven, scaleOf, widened } from './support/quantized.js';

expectDevices();

const runs = testDevices.flatMap((device) => activationDtypes(device).map((dtype) => ({ device, dtype })));

// One unit in the last place at 1: results here are of order 1 and are rounded a handful of times on the way.
const ulp: Partial<Record<Dtype, number>> = { f32: 2 ** -23, f16: 2 ** -10, bf16: 2 ** -7 };

describe.each(runs)('on $device in $dtype', ({ device, dtype }) => {
  expectNoLeaks();

  const random = (shape: number[], seed: number, type: Dtype = 'f32'): Tensor => {
    const count = shape.reduce((a, b) => a * b, 1);
    const x = Tensor.fromArray(noise(count, seed), shape, { device });
    return type === 'f32' ? x : x.cast(type);
  };
  const act = (shape: number[], seed: number): Tensor => random(shape, seed, dtype);
  /** A weight whose rows have about unit length in every dtype. */
  const weight = (shape: number[], seed: number, type: Dtype): Tensor =>
    ops.affine(random(shape, seed), shape.at(-1)! ** -0.5).cast(type);
  const ints = (values: number[]): Tensor => Tensor.fromArray(values, [values.length], { dtype: 'i32', device });
  const weightDtypes: Dtype[] = dtype === 'f32' ? ['f32', 'f16', 'bf16'] : [dtype];
  const tokenCounts = isChecked(device) ? [1, 3, 19] : [1, 2, 7, 16, 17, 65];

  /** Equal bits on the CPU; elsewhere within `steps` units in the last place at the larger of 1 and the value. */
  const expectFused = (actual: Tensor, expected: Tensor, what: string, steps = 8): void => {
    expect(actual.shape).toEqual(expected.shape);
    expect(actual.dtype).toBe(expected.dtype);
    if (device === 'cpu') return expectSameBits(actual.toFloat32(), expected.toFloat32(), what);
    const unit = steps * ulp[dtype]!;
    expectClose(actual.toFloat32(), expected.toFloat32(), { atol: unit, rtol: unit }, what);
  };
  /** Rows [from, to) of `run` on all rows are the bits of `run` on those rows alone. */
  const expectRowsAlone = (rows: number, run: (from: number, to: number) => Tensor): void => {
    const all = run(0, rows).toFloat32();
    const width = all.length / rows;
    for (const [from, to] of [
      [0, 1],
      [rows - 1, rows],
      [1, Math.min(rows, 4)],
    ] as const) {
      expectSameBits(run(from, to).toFloat32(), all.subarray(from * width, to * width), `rows ${from} to ${to}`);
    }
  };

  describe.each(weightDtypes)('with %s weights', (wDtype) => {
    it.each(tokenCounts)('linear and gatedLinear with a norm in front equal rmsNorm and the product, m = %d', (m) =>
      scope(() => {
        const [k, n] = [72, 40];
        const [x, w, up] = [act([m, k], 1), weight([n, k], 2, wDtype), weight([n, k], 3, wDtype)];
        const norm = { weight: random([k], 4), eps: 1e-5 };
        const normed = ops.rmsNorm(x, norm.weight, norm.eps);
        const rest = { bias: random([n], 5), residual: act([m, n], 6), activation: 'gelu' } as const;
        expectFused(ops.linear(x, w, { ...rest, norm }), ops.linear(normed, w, rest), 'linear');
        expectFused(ops.gatedLinear(x, w, up, { norm }), ops.gatedLinear(normed, w, up), 'gatedLinear');
        expect(ops.linear(x, w, { dtype: 'f32' }).dtype).toBe('f32');
      }),
    );

    it.each(tokenCounts)('qkvAppend equals norm, products, rope and kvAppend, %d tokens', (m) =>
      scope(() => {
        const [k, heads, kvHeads, headDim] = [72, 4, 2, 24];
        const x = act([m, k], 11);
        const weights = {
          q: weight([heads * headDim, k], 12, wDtype),
          k: weight([kvHeads * headDim, k], 13, wDtype),
          v: weight([kvHeads * headDim, k], 14, wDtype),
        };
        const norm = { weight: random([k], 15), eps: 1e-6 };
        const invFreq = Tensor.fromArray(
          Float32Array.from({ length: headDim / 2 }, (_, j) => 10000 ** ((-2 * j) / headDim)),
          [headDim / 2],
          { device },
        );
        const positions = ints(Array.from({ length: m }, (_, i) => i * 3));
        // the second row is not stored
        const slotMapping = ints(Array.from({ length: m }, (_, i) => (i === 1 ? -1 : 79 - i)));
        const caches = () => [0, 1].map(() => Tensor.zeros([10, 8, kvHeads, headDim], { device, dtype }));
        const [[k1, v1], [k2, v2]] = [caches(), caches()] as [[Tensor, Tensor], [Tensor, Tensor]];

        const q = ops.qkvAppend(x, weights, { norm, positions, invFreq, kCache: k1, vCache: v1, slotMapping });
        const normed = ops.rmsNorm(x, norm.weight, norm.eps);
        const project = (w: Tensor, h: number) => ops.linear(normed, w).reshape([m, h, headDim]);
        const turned = (y: Tensor) => ops.rope(y, positions, invFreq);
        ops.kvAppend(turned(project(weights.k, kvHeads)), project(weights.v, kvHeads), k2, v2, slotMapping);
        expectFused(q, turned(project(weights.q, heads)), 'q');
        expectFused(k1, k2, 'the keys in the cache');
        expectFused(v1, v2, 'the values in the cache');
      }),
    );

    it.each([
      [1, 8, 8],
      [3, 4, 9],
      [2, 0, 3],
    ])('qformerCrossAttention equals its parts, %d sequences with %d of %d rows reading', (batch, numQuery, rows) =>
      scope(() => {
        const [heads, headDim, keys] = [4, 16, 21];
        const width = heads * headDim;
        const x = act([batch, rows, width], 21);
        const kv = act([batch * keys, 6 * heads, headDim], 22);
        // the second of three cross layers
        const [k, v] = [kv.slice(1, 2 * heads, 3 * heads), kv.slice(1, 3 * heads, 4 * heads)];
        const [query, output] = [24, 26].map((seed) => ({
          weight: weight([width, width], seed, wDtype),
          bias: random([width], seed + 1),
        })) as [{ weight: Tensor; bias: Tensor }, { weight: Tensor; bias: Tensor }];
        const norm = { weight: random([width], 28), bias: random([width], 29), eps: 1e-12 };
        const scale = headDim ** -0.5;
        const y = ops.qformerCrossAttention(x, k, v, { query, output, norm, numQuery, scale });

        const reading = x
          .slice(1, 0, numQuery)
          .contiguous()
          .reshape([batch * numQuery, width]);
        const q = ops.linear(reading, query.weight, { bias: query.bias });
        const context = ops.attention(q.reshape([batch * numQuery, heads, headDim]), k, v, {
          cuSeqlensQ: ints(Array.from({ length: batch + 1 }, (_, b) => b * numQuery)),
          cuSeqlensK: ints(Array.from({ length: batch + 1 }, (_, b) => b * keys)),
          scale,
        });
        const sum = ops.linear(context.reshape([batch * numQuery, width]), output.weight, {
          bias: output.bias,
          residual: reading,
        });
        const normed = ops.layerNorm(sum, norm.weight, norm.bias, norm.eps);
        expectFused(
          y
            .slice(1, 0, numQuery)
            .contiguous()
            .reshape([batch * numQuery, width]),
          normed,
          'queries',
          16,
        );
        expectSameBits(
          y.slice(1, numQuery, rows).contiguous().toFloat32(),
          x.slice(1, numQuery, rows).contiguous().toFloat32(),
          'the rows that do not read',
        );
      }),
    );

    it('gives a row of a normed product the same bits in any batch', () =>
      scope(() => {
        const [rows, k, n] = [isChecked(device) ? 17 : 40, 88, 48];
        const [x, w] = [act([rows, k], 31), weight([n, k], 32, wDtype)];
        const norm = { weight: random([k], 33), eps: 1e-6 };
        expectRowsAlone(rows, (from, to) => ops.linear(x.slice(0, from, to), w, { norm }));
        expectRowsAlone(rows, (from, to) => ops.gatedLinear(x.slice(0, from, to), w, w, { norm }));
      }));

    it('gives a row of qkvAppend the same bits in any batch', () =>
      scope(() => {
        const [rows, k, n] = [isChecked(device) ? 17 : 40, 88, 48];
        const [x, w] = [act([rows, k], 31), weight([n, k], 32, wDtype)];
        const norm = { weight: random([k], 33), eps: 1e-6 };
        const [kCache, vCache] = [0, 1].map(() => Tensor.zeros([rows, 1, 2, 24], { device, dtype }));
        const invFreq = random([12], 34);
        const at = Array.from({ length: rows }, (_, i) => i);
        expectRowsAlone(rows, (from, to) =>
          ops.qkvAppend(
            x.slice(0, from, to),
            { q: w, k: w, v: w },
            {
              norm,
              invFreq,
              positions: ints(at.slice(from, to)),
              slotMapping: ints(at.slice(from, to)),
              kCache: kCache!,
              vCache: vCache!,
            },
          ),
        );
      }));
  });

  describe.each([8, 4] as const)('int%d weights', (bits) => {
    it('are the nearest multiples of a scale per group', () =>
      scope(() => {
        const [n, k, group] = [5, 96, 32];
        const w = random([n, k], 51);
        w.slice(0, 2, 3).copyFrom(Tensor.zeros([1, k], { device }));
        const { q, scales } = ops.quantize(w, { bits, group });
        expect(q.shape).toEqual([n, (k * bits) / 8]);
        expect(scales.shape).toEqual([n, k / group]);
        const wv = w.toFloat32();
        const values = widened({ q, scales }, k);
        scales.toFloat32().forEach((scale, g) => {
          const largest = wv
            .subarray(g * group, (g + 1) * group)
            .reduce((best, value) => Math.max(best, Math.abs(value)), 0);
          expect(scale).toBe(scaleOf(largest, bits));
          for (let i = g * group; i < (g + 1) * group; i++) {
            expect(values[i]).toBe(scale === 0 ? 0 : scale * roundEven(Math.fround(wv[i]! / scale)) + 0);
          }
        });
      }));

    it('have scales that are bf16 numbers, those next above what needs more digits', () =>
      scope(() => {
        const [limit, largestFloat] = [bits === 8 ? 127 : 7, 2 ** 128 - 2 ** 104];
        const exact = limit * (1 + 2 ** -7);
        const largest = [1, 1 + 2 ** -23, 1 + 2 ** -16, 1 + 2 ** -7, 2].map((factor) => Math.fround(exact * factor));
        largest.push(0, 2 ** -149, 2 ** -130, largestFloat, Infinity);
        // one group per row, the largest magnitude of either sign
        const values = largest.flatMap((value) => [0, value, -value, value / 2]);
        const { scales } = ops.quantize(Tensor.fromArray(values, [2 * largest.length, 2], { device }), {
          bits,
          group: 2,
        });
        expect([...scales.toFloat32()]).toEqual(
          largest.flatMap((value) => [scaleOf(value, bits), scaleOf(value, bits)]),
        );
      }));

    it.each(tokenCounts)('give the product of the widened weights, m = %d', (m) =>
      scope(() => {
        for (const [n, k, group] of [
          [51, 96, 32],
          [9, 1216, 64],
          [7, 120, 40],
        ] as const) {
          const quantized = ops.quantize(weight([n, k], 52, 'f32'), { bits, group });
          const x = act([m, k], 53);
          const norm = { weight: random([k], 54), eps: 1e-6 };
          const rest = { bias: random([n], 55), activation: 'silu' } as const;
          // The CPU multiplies integers: x as they stand for it, and sums of another order.
          const rounds = device === 'cpu' && isRounded(quantized, k);
          const w = Tensor.fromArray(widened(quantized, k), [n, k], { device }).cast(dtype);
          for (const options of [
            { ...rest, residual: act([m, n], 56), math: 'f32' as const },
            { ...rest, residual: act([m, n], 56), math: 'int8' as const },
            { ...rest, residual: random([m, n], 56), dtype: 'f32' as const, math: 'f32' as const },
          ]) {
            const input = rounds ? inUnits(ops.rmsNorm(x, norm.weight, norm.eps), options.math) : x;
            const y = ops.quantLinear(x, quantized, { ...options, norm });
            const expected = ops.linear(input, w, { ...options, math: 'f32', ...(!rounds && { norm }) });
            expect(y.dtype).toBe(expected.dtype);
            const what = `quantLinear in ${y.dtype}, groups of ${group}`;
            if (rounds) expectClose(y.toFloat32(), expected.toFloat32(), { atol: 1e-5, rtol: 1e-5 }, what);
            else expectSameBits(y.toFloat32(), expected.toFloat32(), what);
          }
        }
      }),
    );

    it('have the codes and scales that the CPU gives them', () =>
      scope(() => {
        const [n, k, group] = [7, 130, 26];
        const quantized = [device, 'cpu'].map((at) =>
          ops.quantize(Tensor.fromArray(noise(n * k, 59), [n, k], { device: at }).cast(dtype), { bits, group }),
        );
        const [there, here] = quantized.map(({ q, scales }) => [rawBits(q), rawBits(scales)]);
        expect(there).toEqual(here);
      }));

    it('give a row the same bits in any batch', () =>
      scope(() => {
        const [rows, n, k] = [isChecked(device) ? 17 : 40, 24, 128];
        const w = ops.quantize(weight([n, k], 57, 'f32'), { bits, group: 64 });
        const x = act([rows, k], 58);
        expectRowsAlone(rows, (from, to) => ops.quantLinear(x.slice(0, from, to), w));
      }));
  });

  it('refuses a slot outside the cache', () =>
    scope(() => {
      const square = act([8, 8], 61);
      const cache = (): Tensor => Tensor.zeros([2, 4, 1, 8], { device, dtype });
      const append = (slot: number) =>
        ops.qkvAppend(
          act([1, 8], 62),
          { q: square, k: square, v: square },
          {
            norm: { weight: random([8], 63), eps: 1e-6 },
            positions: ints([0]),
            invFreq: random([4], 64),
            kCache: cache(),
            vCache: cache(),
            slotMapping: ints([slot]),
          },
        );
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
      expect(() => settled(device, () => append(8))).toThrow(invalid);
    }));
});

const rawBits = (x: Tensor): Buffer => {
  const values = x.toArray();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
};
