// A linear layer over the last axis. The weight stays [out, in] as stored, in any float dtype, or is quantised in groups of
// columns; norm, bias, activation and residual are fused into the one product either way.

import { ops, type Activation, type Dtype, type Tensor } from '../tensor/index.js';
import type { Parameter, ParameterSource } from './parameter.js';

/** What is fused into the product of a linear layer: act(norm(x)·wᵀ + bias) + residual. */
export interface LinearEpilogue {
  /** RMS norm of x before the product */
  norm?: ops.Norm;
  /** residual: [m, out] */
  residual?: Tensor;
  activation?: Activation;
  /** Of the result: that of x (the default) or f32. */
  dtype?: Dtype;
}

/** y = act(norm(x)·wᵀ + bias) + residual with `PREFIX.weight` [out, in] and `PREFIX.bias` [out]. */
export class Linear {
  readonly weight: Parameter;
  readonly bias: Parameter | undefined;
  readonly math: ops.Math;

  constructor(source: ParameterSource, prefix: string, inFeatures: number, outFeatures: number, bias = true) {
    this.weight = source.matrix(`${prefix}.weight`, [outFeatures, inFeatures], { quantizable: true });
    this.math = source.math;
    this.bias = bias ? source.vector(`${prefix}.bias`, [outFeatures]) : undefined;
  }

  /** The weight for a fused op that takes it bare; undefined where only `forward` computes this layer. */
  get bareWeight(): Tensor | undefined {
    return this.weight.quantized === undefined ? this.weight.tensor : undefined;
  }

  /** x: [m, in] → [m, out] */
  forward(x: Tensor, epilogue: LinearEpilogue = {}): Tensor {
    const options = { ...epilogue, bias: this.bias?.tensor };
    const { quantized } = this.weight;
    if (quantized !== undefined) return ops.quantLinear(x, quantized, options);
    return ops.linear(x, this.weight.tensor, { ...options, math: this.math });
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
