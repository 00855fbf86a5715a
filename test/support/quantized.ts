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
  return Float32Array.from({ length: (codes.length * 8) / bits }, (_, i) => {
    const level = bits === 8 ? (codes[i]! << 24) >> 24 : ((codes[i >> 1]! >> (i % 2 ? 4 : 0)) & 15) - 8;
    return level * scales[Math.floor(i / k) * (k / group) + Math.floor((i % k) / group)]!;
  });
}

/** Whether the CPU rounds what it multiplies with this weight (`inUnits`). */
export function isRounded(weight: ops.QuantizedWeight, k: number): boolean {
  return formOf(weight, k).group % UNIT === 0;
}

/** x: [..., k] f32 on the CPU → each unit of columns as multiples of its largest magnitude / 32767 */
export function inUnits(x: Tensor): Tensor {
  const values = x.toFloat32();
  for (let at = 0; at < values.length; at += UNIT) {
    const unit = values.subarray(at, at + UNIT);
    const largest = unit.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const [scale, perLevel] = [Math.fround(largest / 32767), Math.fround(32767 / largest)];
    if (largest > 0) unit.forEach((value, i) => (unit[i] = scale * roundEven(Math.fround(value * perLevel))));
  }
  return Tensor.fromArray(values, x.shape);
}

function roundEven(value: number): number {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below & 1) : Math.round(value);
}
