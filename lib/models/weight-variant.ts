// Other values for some parameters of a model: the model with one adapter's changes in its weights. `swap` exchanges them with the
// values in use, and again back: nothing is ever computed from a changed weight, so going back is exact.

import type { Parameter, ParameterValue } from '../nn/parameter.js';
import { dtypeSize, keep, scope, Tensor } from '../tensor/index.js';

/** Computes a changed weight; w: as the model keeps it, unquantised → the same shape and dtype. Runs inside a scope. */
export type WeightChange = (w: Tensor) => Tensor;

/** Values that a model can be run with instead of its own. Owns them. */
export class WeightVariant {
  readonly #values = new Map<Parameter, ParameterValue>();
  #isSwapped = false;

  /** Of its values, while they are not swapped in. */
  get bytes(): number {
    return bytesOf([...this.#values.values()].flatMap(tensorsOf));
  }

  /** Takes over the value of a parameter. */
  add(parameter: Parameter, value: ParameterValue): void {
    for (const tensor of tensorsOf(value)) keep(tensor);
    this.#values.set(parameter, value);
  }

  /** As `add`, for a parameter that is computed of others; call it while they are swapped in. */
  derive(parameter: Parameter, compute: () => Tensor): void {
    const value = keep(scope(compute));
    // swapped in, the parameter holds the variant's value and the variant the model's
    this.#values.set(parameter, parameter.value!);
    parameter.assign(value);
  }

  /** The variant's own copy of a stacked parameter, whose parts are to be overwritten. */
  stackOf(parameter: Parameter): Tensor {
    if (!this.#values.has(parameter))
      this.add(
        parameter,
        scope(() => parameter.tensor.cast(parameter.tensor.dtype)),
      );
    return this.#values.get(parameter) as Tensor;
  }

  /** Exchanges the variant's values with the model's. */
  swap(): void {
    for (const [parameter, value] of this.#values) {
      this.#values.set(parameter, parameter.value!);
      parameter.assign(value);
    }
    this.#isSwapped = !this.#isSwapped;
  }

  /** Runs `fn` with the variant's values. */
  during<T>(fn: () => T): T {
    this.swap();
    try {
      return fn();
    } finally {
      this.swap();
    }
  }

  /** Puts the model's values back and frees the variant's. */
  dispose(): void {
    if (this.#isSwapped) this.swap();
    for (const value of this.#values.values()) for (const tensor of tensorsOf(value)) tensor.dispose();
    this.#values.clear();
  }
}

const tensorsOf = (value: ParameterValue): Tensor[] => (value instanceof Tensor ? [value] : [value.q, value.scales]);

/** Bytes of the tensors' elements. */
export const bytesOf = (tensors: readonly Tensor[]): number =>
  tensors.reduce((sum, { size, dtype }) => sum + size * dtypeSize(dtype), 0);
