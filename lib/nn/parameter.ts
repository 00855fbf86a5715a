// Parameters and where modules get them from. A module declares its parameters while it is built; the tensors arrive
// later, when whoever implements ParameterSource has found that all of them fit. So building a model reads no weights,
// and a checkpoint that does not fit is refused in one piece.
//
// Module conventions, kept by every class in nn/ and models/: built from (source, prefix, configuration); `forward`
// takes and returns tensors; the only state is Parameters; public fields carry the names of the checkpoint's modules.

import { QFormerError } from '../errors.js';
import { Tensor, type ops } from '../tensor/index.js';
import type { LoraContext } from './lora.js';

/** In a declared shape: this axis is as long as the stored tensor says. */
export const ANY = -1;

/** What a parameter holds. */
export type ParameterValue = Tensor | ops.QuantizedWeight;

/** A named weight of a module; its tensor exists from loading until the owner of the weights is disposed. */
export class Parameter {
  #value: ParameterValue | undefined;

  constructor(
    readonly name: string,
    readonly shape: readonly number[],
  ) {}

  /** The loaded tensor; INTERNAL before loading, after disposal and where it is quantised. */
  get tensor(): Tensor {
    if (this.#value instanceof Tensor) return this.#value;
    const why = this.#value === undefined ? 'not loaded' : 'quantised';
    throw new QFormerError('INTERNAL', `parameter ${this.name} is ${why}`);
  }

  /** What stands for the tensor where the model was loaded with quantised weights (`quantizable` ones only). */
  get quantized(): ops.QuantizedWeight | undefined {
    return this.#value instanceof Tensor ? undefined : this.#value;
  }

  /** Either of these; undefined before loading. */
  get value(): ParameterValue | undefined {
    return this.#value;
  }

  /** Hands the parameter its value, which the caller keeps owning; `undefined` takes it away. */
  assign(value: ParameterValue | undefined): void {
    this.#value = value;
  }
}

/** A dtype that ops compute in: f32 everywhere, the others on GPUs. */
export type Activations = 'f32' | 'f16' | 'bf16';

/** Where modules declare what they need. Names are the checkpoint's tensor names. */
export interface ParameterSource {
  /** How linear layers and attention form products: bf16 where the caller asked for that arithmetic, f32 otherwise. */
  readonly math: ops.Math;
  /** The same of linear layers with quantised weights. Default f32. */
  readonly quantMath?: ops.QuantMath;
  /** The dtype of what modules pass each other. Where it is 16 bits wide, every matrix has it too. */
  readonly activations: Activations;
  /** Where linear layers get adapters from, in a model that can have them. */
  readonly lora?: LoraContext;
  /**
   * A weight that may stay in the stored dtype (f32, f16 or bf16): linear weights, embedding tables. One whose user reads
   * `Parameter.quantized` may say so.
   */
  matrix(name: string, shape: readonly number[], options?: { quantizable: boolean }): Parameter;
  /** A weight that is f32 whatever is stored: biases, norms, position tables. */
  vector(name: string, shape: readonly number[]): Parameter;
  /** Matrices of one shape [rows, ...] behind each other, [names.length · rows, ...]: layers that read the same input. */
  stackedMatrix(names: readonly string[], shape: readonly number[]): Parameter;
  /** The same of vectors. */
  stackedVector(names: readonly string[], shape: readonly number[]): Parameter;
  /** What `compute` makes of loaded parameters, once, when all are there. */
  derived(name: string, shape: readonly number[], compute: () => Tensor): Parameter;
  /** An f32 tensor computed from the configuration instead of stored, e.g. rotary frequencies. */
  constant(name: string, values: Float32Array, shape: readonly number[]): Parameter;
  /** Accepts, and leaves unread, the tensor `name`, or every tensor below `name` when it ends with a dot. */
  ignore(name: string): void;
}
