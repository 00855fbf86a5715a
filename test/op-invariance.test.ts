// The rule the engine rests on: a row's bits do not depend on the rest of the batch, on how a prompt is cut into chunks, nor on
// the number of threads. Everything here is compared bit for bit.

import { afterAll, describe, expect, it } from 'vitest';
import { Tensor, getThreads, ops, scope, setThreads, type Dtype } from '../lib/tensor/index.js';
import { activationDtypes, testDevices } from './support/devices.js';
import { expectNoLeaks } from './support/fixtures.js';
import { noise } from './support/noise.js';

const threads = getThreads();
afterAll(() => setThreads(threads));

const bits = (x: Tensor): Buffer => {
  const values = x.toFloat32();
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
};
const expectSameBits = (a: Tensor, b: Tensor, what: string): void =>
  expect(Buffer.compare(bits(a), bits(b)), what).toBe(0);

describe.each(testDevices)('on %s', (device) => {
  expectNoLeaks();

  const random = (shape: number[], seed: number): Tensor =>
    Tensor.fromArray(
      noise(
        shape.reduce((a, b) => a * b, 1),
        seed,
      ),
      shape,
      { device },
    );
  const ints = (values: number[], shape = [values.length]): Tensor =>
    Tensor.fromArray(values, shape, { dtype: 'i32', device });

  const halves = activationDtypes(device).filter((dtype) => dtype !== 'f32');
  it.each(halves)('gives every row of a %s product the same bits at any m', (dtype) =>
    scope(() => {
      const [rows, k, n] = [131, 352, 72];
      const x = random([rows, k], 1).cast(dtype);
      const w = random([n, k], 2).cast(dtype);
      const norm = { weight: random([k], 3), eps: 1e-6 };
      const [int8, int4] = ([8, 4] as const).map((bits) => ops.quantize(w, { bits, group: 32 }));
      const products = {
        plain: (part: Tensor) => ops.linear(part, w, { activation: 'gelu' }),
        normed: (part: Tensor) => ops.linear(part, w, { norm }),
        gated: (part: Tensor) => ops.gatedLinear(part, w, w, { norm }),
        logits: (part: Tensor) => ops.linear(part, w, { dtype: 'f32' }),
        int8: (part: Tensor) => ops.quantLinear(part, int8!),
        int4: (part: Tensor) => ops.quantLinear(part, int4!, { norm }),
      };
      for (const [name, run] of Object.entries(products)) {
        const all = run(x);
        for (const m of [1, 2, 4, 5, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 130]) {
          expectSameBits(run(x.slice(0, 0, m)), all.slice(0, 0, m), `${name}, m = ${m}`);
          expectSameBits(run(x.slice(0, rows - m, rows)), all.slice(0, rows - m, rows), `${name}, the last ${m}`);
        }
      }
    }),
  );

  it.each(halves)('does so along 3000 columns, where a GPU shares a sum among its cores (%s)', (dtype) =>
    scope(() => {
      const [x, w] = [random([80, 3000], 4).cast(dtype), random([24, 3000], 5).cast(dtype)];
      const all = ops.linear(x, w);
      for (const m of [1, 16, 33, 64]) {
        expectSameBits(ops.linear(x.slice(0, 0, m), w), all.slice(0, 0, m), `m = ${m}`);
      }
    }),
  );

  it.each(halves)('gives %s queries over pages the same bits in one prefill, in chunks and token by token', (dtype) =>
    scope(() => {
      const [tokens, heads, kvHeads, headDim, blockSize] = [150, 4, 2, 64, 16];
      const blocks = Math.ceil(tokens / blockSize);
      const [q, k, v] = [heads, kvHeads, kvHeads].map((h, i) => random([tokens, h, headDim], i + 1).cast(dtype)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const cache = () => Tensor.zeros([blocks, blockSize, kvHeads, headDim], { device, dtype });
      const [kCache, vCache] = [cache(), cache()];
      ops.kvAppend(k, v, kCache, vCache, ints(Array.from({ length: tokens }, (_, t) => t)));
      const attend = (from: number, to: number) =>
        ops.pagedAttention(q.slice(0, from, to), kCache, vCache, {
          cuSeqlensQ: ints([0, to - from]),
          blockTable: ints(
            Array.from({ length: blocks }, (_, i) => i),
            [1, blocks],
          ),
          contextLens: ints([to]),
          scale: 0.125,
        });
      const whole = attend(0, tokens);
      const cuts = [0, 1, 2, 17, 64, 65, 129, 149, tokens];
      cuts.slice(1).forEach((end, i) => {
        expectSameBits(attend(cuts[i]!, end), whole.slice(0, cuts[i]!, end), `tokens ${cuts[i]} to ${end}`);
      });
    }),
  );

  describe.each(['f32', 'f16', 'bf16'] as Dtype[])('linear with %s weights', (dtype) => {
    it.each(['f32', 'bf16'] as const)('gives every row the same bits at any m, in %s math', (math) =>
      scope(() => {
        const [k, n] = [333, 71];
        const x = random([65, k], 1);
        const w = random([n, k], 2).cast(dtype);
        const options = { bias: random([n], 3), activation: 'gelu', math } as const;
        const all = ops.linear(x, w, options);
        for (const m of [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64]) {
          expectSameBits(ops.linear(x.slice(0, 0, m), w, options), all.slice(0, 0, m), `m = ${m}`);
          expectSameBits(ops.linear(x.slice(0, 65 - m, 65), w, options), all.slice(0, 65 - m, 65), `the last ${m}`);
        }
        const gated = ops.gatedLinear(x, w, w, { math });
        expectSameBits(ops.gatedLinear(x.slice(0, 40, 41), w, w, { math }), gated.slice(0, 40, 41), 'gated row 40');
      }),
    );

    it('does not depend on the number of threads', () =>
      scope(() => {
        const x = random([257, 352], 1);
        const w = random([704, 352], 2).cast(dtype);
        setThreads(1);
        const one = ops.linear(x, w);
        for (const count of [2, 3, 7]) {
          setThreads(count);
          expectSameBits(ops.linear(x, w), one, `${count} threads`);
        }
        setThreads(threads);
      }));
  });

  describe.each([
    [40, 4, 2],
    [64, 2, 2],
    [88, 2, 1],
    [128, 4, 1],
  ])('attention with head_dim %d, %d heads on %d', (headDim, heads, kvHeads) => {
    const blockSize = 16;
    const tokens = 300;
    const blocks = Math.ceil(tokens / blockSize);
    // physical blocks in a scattered order
    const table = Array.from({ length: blocks }, (_, i) => (i * 7 + 3) % blocks);
    const slots = Array.from(
      { length: tokens },
      (_, t) => table[Math.floor(t / blockSize)]! * blockSize + (t % blockSize),
    );
    const scale = 1 / Math.sqrt(headDim);

    const paged = (q: Tensor, k: Tensor, v: Tensor, cuts: number[], cacheDtype: Dtype, math: ops.Math): Tensor[] => {
      const shape = [blocks, blockSize, kvHeads, headDim];
      const [kCache, vCache] = [
        Tensor.zeros(shape, { dtype: cacheDtype, device }),
        Tensor.zeros(shape, { dtype: cacheDtype, device }),
      ];
      return cuts.slice(1).map((end, i) => {
        const start = cuts[i]!;
        ops.kvAppend(k.slice(0, start, end), v.slice(0, start, end), kCache, vCache, ints(slots.slice(start, end)));
        return ops.pagedAttention(q.slice(0, start, end), kCache, vCache, {
          cuSeqlensQ: ints([0, end - start]),
          blockTable: ints(table, [1, blocks]),
          contextLens: ints([end]),
          scale,
          math,
        });
      });
    };

    it.each([
      ['f32', 'f32'],
      ['bf16', 'f32'],
      ['f32', 'bf16'],
    ] as [Dtype, ops.Math][])(
      'gives the same bits in one prefill, in chunks and token by token (%s cache, %s math)',
      (cacheDtype, math) =>
        scope(() => {
          const [q, k, v] = [
            random([tokens, heads, headDim], 1),
            random([tokens, kvHeads, headDim], 2),
            random([tokens, kvHeads, headDim], 3),
          ];
          const [whole] = paged(q, k, v, [0, tokens], cacheDtype, math);
          const cuts = [0, 1, 2, 17, 64, 65, 130, 255, 256, 257, 299, tokens];
          paged(q, k, v, cuts, cacheDtype, math).forEach((part, i) => {
            expectSameBits(part, whole!.slice(0, cuts[i]!, cuts[i + 1]!), `tokens ${cuts[i]} to ${cuts[i + 1]}`);
          });
        }),
    );

    it.each(['f32', 'bf16'] as const)(
      'gives the same bits packed and paged, and beside other sequences, in %s math',
      (math) =>
        scope(() => {
          const [q, k, v] = [
            random([tokens, heads, headDim], 1),
            random([tokens, kvHeads, headDim], 2),
            random([tokens, kvHeads, headDim], 3),
          ];
          const [whole] = paged(q, k, v, [0, tokens], 'f32', math);
          const one = ops.attention(q, k, v, {
            cuSeqlensQ: ints([0, tokens]),
            cuSeqlensK: ints([0, tokens]),
            scale,
            mask: 'causal',
            math,
          });
          expectSameBits(one, whole!, 'packed');
          const cu = ints([0, 7, 207, tokens]);
          const three = ops.attention(q, k, v, { cuSeqlensQ: cu, cuSeqlensK: cu, scale, mask: 'full', math });
          const middle = { cuSeqlensQ: ints([0, 200]), cuSeqlensK: ints([0, 200]), scale, mask: 'full', math } as const;
          const alone = ops.attention(q.slice(0, 7, 207), k.slice(0, 7, 207), v.slice(0, 7, 207), middle);
          expectSameBits(three.slice(0, 7, 207), alone, 'the middle sequence');
        }),
    );
  });

  it('gives rows of norms and softmax the same bits in any batch', () =>
    scope(() => {
      const x = random([33, 1409], 5);
      const [weight, bias] = [random([1409], 6), random([1409], 7)];
      const row = x.slice(0, 20, 21);
      expectSameBits(
        ops.layerNorm(row, weight, bias, 1e-6),
        ops.layerNorm(x, weight, bias, 1e-6).slice(0, 20, 21),
        'layerNorm',
      );
      expectSameBits(ops.rmsNorm(row, weight, 1e-6), ops.rmsNorm(x, weight, 1e-6).slice(0, 20, 21), 'rmsNorm');
      expectSameBits(ops.softmax(row), ops.softmax(x).slice(0, 20, 21), 'softmax');
    }));
});
