// A dense layer over the last axis. The weight stays [out, in] as stored, in any float dtype; bias, activation and
// residual are fused into the one product.

import { ops, type Activation, type Tensor } from '../tensor/index.js';
import type { Parameter, ParameterSource } from './parameter.js';

/** What the epilogue of a linear layer may do: act(x·wᵀ + bias) + residual. */
export interface LinearEpilogue {
  /** residual: [m, out] */
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

  /** x: [m, in] → [m, out] */
  forward(x: Tensor, epilogue: LinearEpilogue = {}): Tensor {
    return ops.linear(x, this.weight.tensor, { ...epilogue, bias: this.bias?.tensor, math: this.math });
  }
}

/** Layers of one shape over one input, in one product; each has the bits of a `Linear` of its own. */
export class StackedLinear {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly math: ops.Math;

  constructor(source: ParameterSource, prefixes: readonly string[], inFeatures: number, outFeatures: number) {
    const names = (suffix: string) => prefixes.map((prefix) => `${prefix}.${suffix}`);
    this.weight = source.stackedMatrix(names('weight'), [outFeatures, inFeatures]);
    this.bias = source.stackedVector(names('bias'), [outFeatures]);
    this.math = source.math;
  }

  /** x: [m, in] → [m, layers · out], the layers side by side */
  forward(x: Tensor): Tensor {
    return ops.linear(x, this.weight.tensor, { bias: this.bias.tensor, math: this.math });
  }
}
