// Who frees a tensor: the scope it was made in, unless it is returned or kept. One native call per scope.

import { QFormerError } from '../errors.js';
import { native, type Handle } from './binding.js';
import { Tensor } from './tensor.js';

/**
 * Runs `fn` and frees every tensor made inside, except those it returns: a Tensor, or arrays and plain objects of them, which move
 * to the scope around. Errors: INVALID_ARGUMENT when `fn` returns a promise, since scopes are synchronous.
 */
export function scope<T>(fn: () => T): T {
  native.openScope();
  let kept: Handle[] = [];
  try {
    const result = fn();
    if (result instanceof Promise || typeof (result as PromiseLike<unknown> | undefined)?.then === 'function') {
      (result as unknown as Promise<unknown>).then(undefined, () => {});
      throw new QFormerError('INVALID_ARGUMENT', 'scope: the function must be synchronous, it returned a promise');
    }
    kept = tensorsIn(result).map((tensor) => tensor.handle);
    return result;
  } finally {
    native.closeScope(kept);
  }
}

/** Takes a tensor out of its scope: it lives until it is disposed. Returns it. */
export function keep<T extends Tensor>(tensor: T): T {
  native.keep(tensor.handle);
  return tensor;
}

/** Every Tensor in a value made of arrays and plain objects. */
export function tensorsIn(value: unknown, found: Tensor[] = []): Tensor[] {
  if (value instanceof Tensor) found.push(value);
  else if (Array.isArray(value)) for (const item of value) tensorsIn(item, found);
  else if (value !== null && typeof value === 'object') {
    const prototype: unknown = Object.getPrototypeOf(value);
    if (prototype === Object.prototype || prototype === null) {
      for (const item of Object.values(value)) tensorsIn(item, found);
    }
  }
  return found;
}
