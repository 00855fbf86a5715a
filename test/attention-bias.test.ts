// The bias by distance of attention and paged attention: values over several key blocks, grouped heads and two sequences,
// within the table and beyond it, against double precision; and equal bits where the bias is zero.

import { describe, expect, it } from 'vitest';
import { Tensor, ops, scope } from '../lib/tensor/index.js';
import { expectDevices, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks } from './support/fixtures.js';

expectDevices();

const [HEADS, KV_HEADS, DIM, SCALE] = [4, 2, 24, 0.2];
/** Queries and keys of each sequence. */
const LENGTHS = [
  [7, 131],
  [70, 70],
] as const;
/** Distances from −90 to 40, fewer than the sequences have. */
const [SPAN, ORIGIN] = [131, 90];

const wave = (count: number, step: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i * step));
const queries = LENGTHS.map(([q]) => q);
const keys = LENGTHS.map(([, k]) => k);
const total = (lengths: number[]): number => lengths.reduce((sum, length) => sum + length, 0);
const q = wave(total(queries) * HEADS * DIM, 0.37);
const [k, v] = [wave(total(keys) * KV_HEADS * DIM, 0.61), wave(total(keys) * KV_HEADS * DIM, 0.83)];
const bias = wave(HEADS * SPAN, 1.7).map((value) => 3 * value);
const biasAt = (h: number, distance: number): number =>
  bias[h * SPAN + Math.min(Math.max(distance + ORIGIN, 0), SPAN - 1)]!;

/** softmax(scale · q kᵀ + bias) v in double precision. */
function reference(causal: boolean): number[] {
  const result: number[] = [];
  for (const [s, [rows, cols]] of LENGTHS.entries()) {
    const [q0, k0] = [total(queries.slice(0, s)), total(keys.slice(0, s))];
    for (let i = 0; i < rows; i++) {
      for (let h = 0; h < HEADS; h++) {
        const seen = causal ? i + cols - rows + 1 : cols;
        const at = (j: number): number => ((k0 + j) * KV_HEADS + Math.floor(h / (HEADS / KV_HEADS))) * DIM;
        const dot = (j: number): number =>
          Array.from({ length: DIM }, (_, d) => q[((q0 + i) * HEADS + h) * DIM + d]! * k[at(j) + d]!).reduce(
            (a, b) => a + b,
          );
        const weights = Array.from({ length: seen }, (_, j) =>
          Math.exp(SCALE * dot(j) + biasAt(h, j - (i + cols - rows))),
        );
        const sum = weights.reduce((a, b) => a + b);
        for (let d = 0; d < DIM; d++) result.push(weights.reduce((o, w, j) => o + w * v[at(j) + d]!, 0) / sum);
      }
    }
  }
  return result;
}

describe.each(testDevices)('on %s', (device) => {
  expectNoLeaks();

  const offsets = (lengths: number[]): Tensor =>
    Tensor.fromArray(Int32Array.from([0, ...lengths.map((_, s) => total(lengths.slice(0, s + 1)))]), [3], { device });
  const attend = (mask: ops.Mask, values?: Float32Array): Float32Array =>
    scope(() => {
      const rows = (data: Float32Array, heads: number): Tensor =>
        Tensor.fromArray(data, [data.length / heads / DIM, heads, DIM], { device });
      return ops
        .attention(rows(q, HEADS), rows(k, KV_HEADS), rows(v, KV_HEADS), {
          cuSeqlensQ: offsets(queries),
          cuSeqlensK: offsets(keys),
          scale: SCALE,
          mask,
          ...(values && { bias: { table: Tensor.fromArray(values, [HEADS, SPAN], { device }), origin: ORIGIN } }),
        })
        .toFloat32();
    });

  it.each(['full', 'causal'] as const)('adds what the table has for the distance of query and key, mask %s', (mask) => {
    // 2e-5: the bound of f32 attention in the fixtures
    expectClose(attend(mask, bias), reference(mask === 'causal'), { atol: 2e-5 });
  });

  /** The same through a paged cache whose blocks lie backwards. */
  const attendPaged = (values?: Float32Array): Float32Array =>
    scope(() => {
      const [size, width] = [16, Math.ceil(Math.max(...keys) / 16)];
      const blocks = LENGTHS.length * width;
      const caches = [0, 1].map(() => Tensor.zeros([blocks, size, KV_HEADS, DIM], { device }));
      const slots = keys.flatMap((count, s) =>
        Array.from({ length: count }, (_, j) => (blocks - 1 - s * width - Math.floor(j / size)) * size + (j % size)),
      );
      const rows = [k, v].map((data) => Tensor.fromArray(data, [total(keys), KV_HEADS, DIM], { device }));
      const mapping = Tensor.fromArray(Int32Array.from(slots), [slots.length], { device });
      ops.kvAppend(rows[0]!, rows[1]!, caches[0]!, caches[1]!, mapping);
      const table = Int32Array.from({ length: blocks }, (_, i) => blocks - 1 - i);
      return ops
        .pagedAttention(Tensor.fromArray(q, [total(queries), HEADS, DIM], { device }), caches[0]!, caches[1]!, {
          cuSeqlensQ: offsets(queries),
          blockTable: Tensor.fromArray(table, [LENGTHS.length, width], { device }),
          contextLens: Tensor.fromArray(Int32Array.from(keys), [keys.length], { device }),
          scale: SCALE,
          ...(values && { bias: { table: Tensor.fromArray(values, [HEADS, SPAN], { device }), origin: ORIGIN } }),
        })
        .toFloat32();
    });

  it('is the same over a paged cache', () => {
    expectClose(attendPaged(bias), reference(true), { atol: 2e-5 });
    expect(attendPaged(new Float32Array(bias.length))).toEqual(attendPaged());
  });

  it('changes no bit where it is zero', () => {
    expect(attend('causal', new Float32Array(bias.length))).toEqual(attend('causal'));
  });
});
