// Random tensors. Speed does not depend on the values as long as they are ordinary numbers: no zeros, no denormals.

import { keep, Tensor, type Dtype } from '../lib/tensor/index.js';
import { l3Bytes } from './machine.js';

let state = 0x9e3779b9;

/** Uniform in [−1, 1), the same sequence in every run (xorshift32, Marsaglia 2003). */
export function uniform(): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state / 2 ** 31;
}

const POOL = Float32Array.from({ length: 1 << 16 }, uniform);

/** `count` values in [−1, 1) times `scale`; long arrays repeat a pool of 65,536. */
export function randomValues(count: number, scale = 1): Float32Array {
  const values = new Float32Array(count);
  const pool = scale === 1 ? POOL : POOL.map((value) => value * scale);
  for (let at = 0; at < count; at += pool.length) values.set(pool.subarray(0, Math.min(pool.length, count - at)), at);
  return values;
}

/** A kept random tensor of a float dtype. */
export function randomTensor(shape: readonly number[], dtype: Dtype = 'f32', scale = 1): Tensor {
  const values = Tensor.fromArray(randomValues(product(shape), scale), shape);
  if (dtype === 'f32') return keep(values);
  const converted = keep(values.cast(dtype));
  values.dispose();
  return converted;
}

/** A kept i32 tensor. */
export function ints(values: readonly number[], shape: readonly number[] = [values.length]): Tensor {
  return keep(Tensor.fromArray(Int32Array.from(values), shape));
}

/** Copies of a weight that together exceed the caches, taken in turn, so that each call reads its weight from DRAM. */
export class Rotation<T> {
  readonly copies: T[];
  #next = 0;

  constructor(bytes: number, make: () => T) {
    const count = Math.max(2, Math.ceil((4 * l3Bytes()) / bytes));
    this.copies = Array.from({ length: count }, make);
  }

  next(): T {
    this.#next = (this.#next + 1) % this.copies.length;
    return this.copies[this.#next]!;
  }
}

export function product(shape: readonly number[]): number {
  return shape.reduce((all, extent) => all * extent, 1);
}
