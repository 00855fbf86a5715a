// What quantised weights stand for, read from their codes without the kernels, and how the CPU rounds what they are multiplied with.

import { type ops, Tensor } from '../../lib/tensor/index.js';

/** Columns of x that share a scale on the CPU, and rows of a weight that lie side by side there. */
const [UNIT, BLOCK] = [64, 16];

/** Bits of a code and columns of a group, of a weight with `k` columns. */
export function formOf({ q, scales }: ops.QuantizedWeight, k: number): { bits: number; group: number } {
  return { bits: (8 * q.shape[1]!) / k, group: k / scales.shape[1]! };
}

/** The weight that quantised codes stand for: [n, k] f32, each level times the scale of its group. */
export function widened(weight: ops.QuantizedWeight, k: number): Float32Array {
  const { bits, group } = formOf(weight, k);
  const [codes, scales] = [weight.q.toArray() as Uint8Array, weight.scales.toFloat32()];
  const [n, groups] = weight.scales.shape as [number, number];
  const inBlocks = weight.q.device === 'cpu' && isRounded(weight, k);
  return Float32Array.from({ length: n * k }, (_, at) => {
    const [row, i] = [Math.floor(at / k), at % k];
    const g = Math.floor(i / group);
    if (!inBlocks) return levelInOrder(codes, at, bits) * scales[row * groups + g]!;
    // The CPU has blocks of rows, the last one shorter: words of each of its rows in turn, and scales likewise
    const first = row - (row % BLOCK);
    const rows = Math.min(BLOCK, n - first);
    const word = Math.floor(i / (32 / bits));
    const byte = codes[(first * k * bits) / 8 + 4 * (word * rows + row - first) + (i % 4)]!;
    const level = bits === 8 ? byte - 128 : (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    return level * scales[first * groups + g * rows + row - first]!;
  });
}

/** The scale of a group whose largest magnitude is an f32: the least bf16 that is not below its quotient by 127 or 7 in f32. */
export function scaleOf(largest: number, bits: 4 | 8): number {
  const quotient = Math.fround(largest / (bits === 8 ? 127 : 7));
  if (quotient === 0 || quotient === Infinity) return quotient;
  const unit = 2 ** (Math.max(Math.floor(Math.log2(quotient)), -126) - 7);
  return Math.ceil(quotient / unit) * unit;
}

/** Level `i` of codes in the order of columns, signed bytes or halves of a byte plus 8. */
function levelInOrder(codes: Uint8Array, i: number, bits: number): number {
  return bits === 8 ? (codes[i]! << 24) >> 24 : ((codes[i >> 1]! >> (i % 2 ? 4 : 0)) & 15) - 8;
}

/** Whether the CPU rounds what it multiplies with this weight (`inUnits`). */
export function isRounded(weight: ops.QuantizedWeight, k: number): boolean {
  return formOf(weight, k).group % UNIT === 0;
}

/** x: [..., k] f32 on the CPU → each unit of columns as multiples of its largest magnitude / 32639, or / 127 in 8 bits */
export function inUnits(x: Tensor, math: ops.QuantMath = 'f32'): Tensor {
  const levels = math === 'int8' ? 127 : 32639;
  const values = x.toFloat32();
  for (let at = 0; at < values.length; at += UNIT) {
    const unit = values.subarray(at, at + UNIT);
    const largest = unit.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const [scale, perLevel] = [Math.fround(largest / levels), Math.fround(levels / largest)];
    if (largest > 0) unit.forEach((value, i) => (unit[i] = scale * roundEven(Math.fround(value * perLevel))));
  }
  return Tensor.fromArray(values, x.shape);
}

/** The nearest whole number, the even one of two. */
export function roundEven(value: number): number {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below & 1) : Math.round(value);
}
