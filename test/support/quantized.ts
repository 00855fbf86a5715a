// What quantised weights stand for, read from their codes without the kernels, and how the CPU rounds what they are multiplied with.

import { type ops, Tensor } from '../../lib/tensor/index.js';

/** Columns of x that share a scale on the CPU. */
const UNIT = 64;

/** Bits of a code and columns of a group, of a weight with `k` columns. */
export function formOf({ q, scales }: ops.QuantizedWeight, k: number): { bits: number; group: number } {
  return { bits: (8 * q.shape[1]!) / k, group: k / scales.shape[1]! };
}

/** The weight that quantised codes stand for: [n, k] f32, each level times the scale of its group. */
export function widened(weight: ops.QuantizedWeight, k: number): Float32Array {
  const { bits, group } = formOf(weight, k);
  const [codes, scales] = [weight.q.toArray() as Uint8Array, weight.scales.toFloat32()];
  const levelOf = weight.q.device === 'cpu' && isRounded(weight, k) ? levelInUnits : levelInOrder;
  const rowBytes = (k * bits) / 8;
  return Float32Array.from({ length: (codes.length * 8) / bits }, (_, i) => {
    const row = Math.floor(i / k);
    const level = levelOf(codes.subarray(row * rowBytes, (row + 1) * rowBytes), i % k, bits);
    return level * scales[row * (k / group) + Math.floor((i % k) / group)]!;
  });
}

/** The scale of a group whose largest magnitude is an f32: the least bf16 that is not below its quotient by 127 or 7 in f32. */
export function scaleOf(largest: number, bits: 4 | 8): number {
  const quotient = Math.fround(largest / (bits === 8 ? 127 : 7));
  if (quotient === 0 || quotient === Infinity) return quotient;
  const unit = 2 ** (Math.max(Math.floor(Math.log2(quotient)), -126) - 7);
  return Math.ceil(quotient / unit) * unit;
}

/** Column `i` of a row of codes in the order of columns, signed bytes or halves of a byte plus 8. */
function levelInOrder(row: Uint8Array, i: number, bits: number): number {
  return bits === 8 ? (row[i]! << 24) >> 24 : ((row[i >> 1]! >> (i % 2 ? 4 : 0)) & 15) - 8;
}

/** Column `i` of a row as the CPU stores it: 16 units side by side, a word of each in turn, plus half of the range. */
function levelInUnits(row: Uint8Array, i: number, bits: number): number {
  const unit = Math.floor(i / UNIT);
  const chunk = unit - (unit % 16);
  const width = Math.min(16, (row.length * 8) / bits / UNIT - chunk);
  const word = Math.floor((i % UNIT) / (32 / bits));
  const byte = row[chunk * 8 * bits + 4 * (word * width + unit - chunk) + (i % 4)]!;
  if (bits === 8) return byte - 128;
  return (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
}

/** Whether the CPU rounds what it multiplies with this weight (`inUnits`). */
export function isRounded(weight: ops.QuantizedWeight, k: number): boolean {
  return formOf(weight, k).group % UNIT === 0;
}

/** x: [..., k] f32 on the CPU → each unit of columns as multiples of its largest magnitude / 32639 */
export function inUnits(x: Tensor): Tensor {
  const values = x.toFloat32();
  for (let at = 0; at < values.length; at += UNIT) {
    const unit = values.subarray(at, at + UNIT);
    const largest = unit.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const [scale, perLevel] = [Math.fround(largest / 32639), Math.fround(32639 / largest)];
    if (largest > 0) unit.forEach((value, i) => (unit[i] = scale * roundEven(Math.fround(value * perLevel))));
  }
  return Tensor.fromArray(values, x.shape);
}

/** The nearest whole number, the even one of two. */
export function roundEven(value: number): number {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below & 1) : Math.round(value);
}
