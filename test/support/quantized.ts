// What quantised weights stand for, read from their codes without the kernels, and the order in which the CPU adds up int4 products.

import { type ops, Tensor } from '../../lib/tensor/index.js';

/** Columns that the CPU reorders together. */
const BLOCK = 32;

/** Bits of a code and columns of a group, of a weight with `k` columns. */
export function formOf({ q, scales }: ops.QuantizedWeight, k: number): { bits: number; group: number } {
  return { bits: (8 * q.shape[1]!) / k, group: k / scales.shape[1]! };
}

/** The weight that quantised codes stand for: [n, k] f32, each level times the scale of its group. */
export function widened(weight: ops.QuantizedWeight, k: number): Float32Array {
  const { bits, group } = formOf(weight, k);
  const [codes, scales] = [weight.q.toArray() as Uint8Array, weight.scales.toFloat32()];
  return Float32Array.from({ length: (codes.length * 8) / bits }, (_, i) => {
    const level = bits === 8 ? (codes[i]! << 24) >> 24 : ((codes[i >> 1]! >> (i % 2 ? 4 : 0)) & 15) - 8;
    return level * scales[Math.floor(i / k) * (k / group) + Math.floor((i % k) / group)]!;
  });
}

/** Whether the CPU adds up the columns of this weight in the order of `reordered`. */
export function isReordered(weight: ops.QuantizedWeight, k: number): boolean {
  const { bits, group } = formOf(weight, k);
  return bits === 4 && group % BLOCK === 0;
}

/** Blocks of 32 columns, place i of each holding column 8 · (i mod 4) + ⌊i / 4⌋. */
export function reordered(values: Float32Array): Float32Array {
  return values.map((_, at) => {
    const i = at % BLOCK;
    return values[at - i + 8 * (i % 4) + Math.floor(i / 4)]!;
  });
}

/** x: [..., k] f32 on the CPU → the same with its columns reordered */
export const withReorderedColumns = (x: Tensor): Tensor => Tensor.fromArray(reordered(x.toFloat32()), x.shape);
