// How the op wrappers turn their options into the numbers of the native ABI (csrc/backend/backend.h).

import { QFormerError } from '../errors.js';
import { handleOf, type Tensor } from './tensor.js';

/** gelu is the erf form; gelu_tanh the approximation ("gelu_new"). */
export type Activation = 'none' | 'gelu' | 'gelu_tanh' | 'relu' | 'silu';
/** f32: products in f32; bf16: x rounded to bf16 first where the weight is bf16. Sums are f32 in both. */
export type Math = 'f32' | 'bf16';
/** What quantised weights are multiplied with: x to 2e-5 of its size, or, with int8, rounded to 8 bits where that is faster. */
export type QuantMath = 'f32' | 'int8';
/** Which keys a query row sees: see QfMask in csrc/backend/backend.h; itc and itg are the Q-Former's (BLIP-2, section 3.1). */
export type Mask = 'full' | 'causal' | 'itc' | 'itg';

export const activations: readonly Activation[] = ['none', 'gelu', 'gelu_tanh', 'relu', 'silu'];
export const maths: readonly Math[] = ['f32', 'bf16'];
/** In the order of QfMath, where bf16 is no product of quantised weights. */
export const quantMaths: readonly (QuantMath | undefined)[] = ['f32', undefined, 'int8'];
export const masks: readonly Mask[] = ['full', 'causal', 'itc', 'itg'];

/** The number of `value` among `values`; INVALID_ARGUMENT for another one. */
export function codeOf<T extends string>(where: string, values: readonly (T | undefined)[], value: T): number {
  const code = values.indexOf(value);
  if (code >= 0) return code;
  const allowed = values.filter((known) => known !== undefined).join(', ');
  throw new QFormerError('INVALID_ARGUMENT', `${where} must be one of ${allowed}, got '${String(value)}'`);
}

/** The handle of an optional tensor, 0 for none. */
export function optional(where: string, value: Tensor | undefined): number {
  return value === undefined ? 0 : handleOf(where, value);
}

/** An RMS norm of x in front of a product. weight: [k] f32 */
export interface Norm {
  weight: Tensor;
  eps: number;
}

/** The weight and eps of an optional norm. */
export function normOf(op: string, norm: Norm | undefined): [weight: number, eps: number] {
  return norm === undefined ? [0, 0] : [handleOf(`${op}: norm.weight`, norm.weight), norm.eps];
}
