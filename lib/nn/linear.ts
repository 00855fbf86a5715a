// A dense layer over the last axis. The weight stays [out, in] as stored, in any float dtype; bias, activation and
// residual are fused into the one product.

import { ops, type Activation, type Tensor } from '../tensor/index.js';
import type { Parameter, ParameterSource } from './parameter.js';

/** What the epilogue of a linear layer may do: act(x·wᵀ + bias) + residual. */
export interface LinearEpilogue {
  /** residual: [m, out] f32 */
  residual?: Tensor;
  activation?: Activation;
}

/** y = act(x·wᵀ + bias) + residual with `PREFIX.weight` [out, in] and `PREFIX.bias` [out]. */
export class Linear {
  readonly weight: Parameter;
  readonly bias: Parameter | undefined;
  readonly math: ops.Math;

  constructor(source: ParameterSource, prefix: string, inFeatures: number, outFeatures: number, bias = true) {
    this.weight = source.matrix(`${prefix}.weight`, [outFeatures, inFeatures]);
    this.math = source.math;
    this.bias = bias ? source.vector(`${prefix}.bias`, [outFeatures]) : undefined;
  }

  /** x: [m, in] f32 → [m, out] f32 */
  forward(x: Tensor, epilogue: LinearEpilogue = {}): Tensor {
    return ops.linear(x, this.weight.tensor, { ...epilogue, bias: this.bias?.tensor, math: this.math });
  }
}
