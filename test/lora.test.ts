// LoRA: an adapter per row of a batch against double and against the CPU row by row, and adapters merged into weights.

import { describe, expect, it } from 'vitest';
import { Tensor, ops, record, scope, type Dtype } from '../lib/tensor/index.js';
import { activationDtypes, expectDevices, settled, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits } from './support/fixtures.js';
import { noise } from './support/noise.js';

expectDevices();

const runs = testDevices.flatMap((device) =>
  activationDtypes(device).flatMap((dtype) =>
    (dtype === 'f32' ? (['f32', 'f16', 'bf16'] as const) : [dtype]).map((wDtype) => ({ device, dtype, wDtype })),
  ),
);

const ulp: Partial<Record<Dtype, number>> = { f32: 2 ** -23, f16: 2 ** -10, bf16: 2 ** -7 };

describe.each(runs)('on $device in $dtype with $wDtype weights', ({ device, dtype, wDtype }) => {
  expectNoLeaks();

  const random = (shape: number[], seed: number, type: Dtype = 'f32', at: string = device): Tensor => {
    const count = shape.reduce((a, b) => a * b, 1);
    const x = Tensor.fromArray(noise(count, seed), shape, { device: at });
    return type === 'f32' ? x : x.cast(type);
  };
  /** Rows of about unit length. */
  const weight = (shape: number[], seed: number, at: string = device): Tensor =>
    ops.affine(random(shape, seed, 'f32', at), shape.at(-1)! ** -0.5).cast(wDtype);
  const ints = (values: number[], at: string = device): Tensor =>
    Tensor.fromArray(values, [values.length], { dtype: 'i32', device: at });
  const adapterTable = (slots: number, rank: number, k: number, n: number, at: string = device) => ({
    a: weight([slots, rank, k], 1, at),
    b: weight([slots, n, rank], 2, at),
    scaling: random([slots], 3, 'f32', at),
  });

  it('adds the adapter of each row and nothing where there is none', () =>
    scope(() => {
      const [m, k, n, rank, slots] = [9, 77, 33, 5, 3];
      const [x, y] = [random([m, k], 4, dtype), random([m, n], 5, dtype)];
      const lora = adapterTable(slots, rank, k, n);
      const adapters = [0, 1, 2, -1, 2, 1, 0, -1, 0];
      const before = y.toFloat32();
      const [xv, av, bv, scaling] = [x, lora.a, lora.b, lora.scaling].map((tensor) => tensor.toFloat32());
      ops.loraApply(y, x, { ...lora, adapters: ints(adapters) });
      const expected = before.map((value, i) => {
        const [r, j, s] = [Math.floor(i / n), i % n, adapters[Math.floor(i / n)]!];
        if (s < 0) return value;
        let sum = 0;
        for (let q = 0; q < rank; q++) {
          let low = 0;
          for (let c = 0; c < k; c++) low += av![(s * rank + q) * k + c]! * xv![r * k + c]!;
          sum += bv![(s * n + j) * rank + q]! * low;
        }
        return value + scaling![s]! * sum;
      });
      const unit = 4 * ulp[dtype]!;
      expectClose(y.toFloat32(), expected, { atol: unit, rtol: unit });
      for (const r of [3, 7]) {
        expectSameBits(y.slice(0, r, r + 1).toFloat32(), before.slice(r * n, (r + 1) * n), 'a row without adapter');
      }
    }));

  it('gives a row the same bits in any batch', () =>
    scope(() => {
      const [rows, k, n] = [70, 88, 48];
      const x = random([rows, k], 6, dtype);
      const lora = adapterTable(3, 8, k, n);
      // rows that change adapter, then a prompt of one
      const adapters = Array.from({ length: rows }, (_, i) => (i < 20 ? (i % 4) - 1 : 1));
      const apply = (from: number, to: number): Float32Array => {
        const y = Tensor.zeros([to - from, n], { device, dtype });
        ops.loraApply(y, x.slice(0, from, to), { ...lora, adapters: ints(adapters.slice(from, to)) });
        return y.toFloat32();
      };
      const all = apply(0, rows);
      for (const [from, to] of [
        [0, 1],
        [3, 10],
        [18, 27],
        [69, 70],
      ] as const) {
        expectSameBits(apply(from, to), all.subarray(from * n, to * n), `rows ${from} to ${to}`);
      }
    }));

  it('decodes a batch of several adapters, step by step from a recording, as the CPU does each row alone', () =>
    scope(() => {
      const [m, k, n, rank, slots] = [6, 96, 40, 16, 3];
      const [x, adapters] = [random([m, k], 7, dtype), ints(Array.from({ length: m }, () => -1))];
      const table = { ...adapterTable(slots, rank, k, n), adapters };
      const w = weight([n, k], 8);
      const graph = record(() =>
        scope(() => {
          const y = ops.linear(x, w);
          ops.loraApply(y, x, table);
          return y;
        }),
      );
      const [cpuTable, cpuW] = [adapterTable(slots, rank, k, n, 'cpu'), weight([n, k], 8, 'cpu')];
      [
        [0, 1, 2, -1, 1, 0],
        [2, 2, 2, 2, 2, 2],
        [-1, 1, -1, 1, 0, -1],
      ].forEach((slotsOfRows, step) => {
        const rows = random([m, k], 9 + step, dtype);
        x.copyFrom(rows);
        adapters.write(slotsOfRows);
        graph.replay();
        const actual = graph.outputs.toFloat32();
        slotsOfRows.forEach((slot, r) => {
          const row = Tensor.fromArray(rows.slice(0, r, r + 1).toFloat32(), [1, k]);
          // the product is stored in dtype before the adapter is added
          const y = ops.linear(row, cpuW).cast(dtype).cast('f32');
          ops.loraApply(y, row, { ...cpuTable, adapters: ints([slot], 'cpu') });
          const what = `row ${r} of step ${step}`;
          // two roundings to dtype, each perhaps to the other side; and f32 sums of 96 terms in another order, whose
          // magnitudes add up to 20: the errors walk at random, 4 deviations
          const [unit, walk] = [2 * ulp[dtype]!, 4 * 2 ** -24 * Math.sqrt(k) * 20];
          expectClose(actual.subarray(r * n, (r + 1) * n), y.toFloat32(), { atol: unit + walk, rtol: unit }, what);
        });
      });
      graph.dispose();
    }));

  it('refuses an adapter outside the table', () =>
    scope(() => {
      const lora = adapterTable(2, 3, 8, 4);
      const apply = (slot: number) =>
        ops.loraApply(random([1, 4], 10, dtype), random([1, 8], 11, dtype), { ...lora, adapters: ints([slot]) });
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
      expect(() => settled(device, () => apply(2))).toThrow(invalid);
      settled(device, () => apply(1));
    }));

  it('merged into a weight and unmerged, gives the base back bit for bit', () =>
    scope(() => {
      const base = weight([33, 40], 12);
      const pristine = rawBits(base);
      const [a, b] = [random([4, 40], 13), random([33, 4], 14)];
      const merged = ops.loraMerge(base, a, b, 0.5);
      expect(Buffer.compare(rawBits(merged), pristine), 'merging changes the weight').not.toBe(0);
      // a merge makes a new weight, so unmerging is going back to the base: what is added is never subtracted
      expect(Buffer.compare(rawBits(base), pristine)).toBe(0);
      expect(Buffer.compare(rawBits(ops.loraMerge(base, a, b, 0)), pristine)).toBe(0);
      expect(Buffer.compare(rawBits(ops.loraMerge(base, a, b, 0.5)), rawBits(merged)), 'merged again').toBe(0);
    }));
});

const rawBits = (x: Tensor): Buffer => {
  const values = x.toArray();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
};
