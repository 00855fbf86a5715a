// Element types and their numbers in the native ABI (csrc/backend/dtype.h).

import { QFormerError, describe } from '../errors.js';
import type { TypedArray } from './binding.js';

/** Element types. f16 and bf16 values travel as their 16 bits in a Uint16Array. */
export type Dtype = 'f32' | 'f16' | 'bf16' | 'i32' | 'u8';

const dtypes: readonly Dtype[] = ['f32', 'f16', 'bf16', 'i32', 'u8'];

/** INVALID_ARGUMENT for anything but a Dtype. */
export function dtypeCode(dtype: Dtype): number {
  const code = dtypes.indexOf(dtype);
  if (code < 0)
    throw new QFormerError('INVALID_ARGUMENT', `dtype must be one of ${dtypes.join(', ')}, got ${describe(dtype)}`);
  return code;
}

export function dtypeName(code: number): Dtype {
  return dtypes[code]!;
}

/** Bytes of one element. */
export function dtypeSize(dtype: Dtype): number {
  return dtype === 'u8' ? 1 : dtype === 'f16' || dtype === 'bf16' ? 2 : 4;
}

/** The typed array that carries a dtype's elements. */
export function arrayFor(dtype: Dtype, values: readonly number[]): TypedArray {
  if (dtype === 'f32') return Float32Array.from(values);
  if (dtype === 'i32') return Int32Array.from(values);
  if (dtype === 'u8') return Uint8Array.from(values);
  throw new QFormerError('DTYPE', `numbers do not convert to ${dtype} here: make an f32 tensor and cast it`);
}

/** The dtype a typed array stands for when none is named. */
export function dtypeOfArray(data: TypedArray): Dtype {
  if (data instanceof Float32Array) return 'f32';
  if (data instanceof Int32Array) return 'i32';
  if (data instanceof Uint8Array) return 'u8';
  throw new QFormerError('DTYPE', `a ${data.constructor.name} needs an explicit dtype ('f16' or 'bf16')`);
}
