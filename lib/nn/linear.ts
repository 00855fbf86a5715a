// A linear layer over the last axis. The weight stays [out, in] as stored, in any float dtype, or is quantised in groups of
// columns; norm, bias, activation and residual are fused into the one product either way. Where rows have adapters, their part is
// added between the product and the activation.

import { ops, Tensor, type Activation, type Dtype } from '../tensor/index.js';
import type { LoraTarget } from './lora.js';
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
  readonly #quantMath: ops.QuantMath;
  readonly #lora: LoraTarget | undefined;

  constructor(source: ParameterSource, prefix: string, inFeatures: number, outFeatures: number, bias = true) {
    this.weight = source.matrix(`${prefix}.weight`, [outFeatures, inFeatures], { quantizable: true });
    this.math = source.math;
    this.#quantMath = source.quantMath ?? 'f32';
    this.#lora = source.lora?.target(prefix, inFeatures, outFeatures);
    this.bias = bias ? source.vector(`${prefix}.bias`, [outFeatures]) : undefined;
  }

  /** The weight for a fused op that takes it bare; undefined where only `forward` computes this layer. */
  get bareWeight(): Tensor | undefined {
    if (this.#lora?.isActive || this.weight.quantized !== undefined) return undefined;
    return this.weight.tensor;
  }

  /** x: [m, in] → [m, out] */
  forward(x: Tensor, epilogue: LinearEpilogue = {}): Tensor {
    return this.#lora?.isActive ? this.#withAdapters(x, epilogue, this.#lora) : this.#product(x, epilogue);
  }

  #withAdapters(x: Tensor, epilogue: LinearEpilogue, lora: LoraTarget): Tensor {
    const { norm, activation = 'none', residual, dtype } = epilogue;
    const input = norm === undefined ? x : ops.rmsNorm(x, norm.weight, norm.eps);
    const isLast = activation === 'none';
    const product = this.#product(input, { ...(isLast && residual && { residual }), ...(dtype && { dtype }) });
    const y = addAdapters(product, input, lora);
    if (isLast) return y;
    const activated = ops.activation(y, activation);
    return residual === undefined ? activated : ops.add(activated, residual);
  }

  #product(x: Tensor, epilogue: LinearEpilogue): Tensor {
    const options = { ...epilogue, bias: this.bias?.tensor };
    const { quantized } = this.weight;
    if (quantized !== undefined) return ops.quantLinear(x, quantized, { ...options, math: this.#quantMath });
    return ops.linear(x, this.weight.tensor, { ...options, math: this.math });
  }
}

/** y with the adapters' part of x, in place where both have one dtype; else it is rounded to that of x by itself, and y is not. */
function addAdapters(y: Tensor, x: Tensor, lora: LoraTarget): Tensor {
  const { shape, dtype, device } = y;
  const sum = dtype === x.dtype ? y : Tensor.zeros(shape, { dtype: x.dtype, device });
  lora.addTo(sum, x);
  return sum === y ? y : ops.add(y, sum.cast(dtype));
}

/** Layers of one shape over one input, in one product; each has the bits of a `Linear` of its own. */
export class StackedLinear {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly math: ops.Math;
  readonly #lora: readonly LoraTarget[];

  constructor(source: ParameterSource, prefixes: readonly string[], inFeatures: number, outFeatures: number) {
    const names = (suffix: string) => prefixes.map((prefix) => `${prefix}.${suffix}`);
    this.weight = source.stackedMatrix(names('weight'), [outFeatures, inFeatures]);
    this.bias = source.stackedVector(names('bias'), [outFeatures]);
    this.math = source.math;
    const { lora } = source;
    this.#lora = lora === undefined ? [] : prefixes.map((prefix) => lora.target(prefix, inFeatures, outFeatures));
  }

  /** x: [m, in] → [m, layers · out], the layers side by side */
  forward(x: Tensor): Tensor {
    const y = ops.linear(x, this.weight.tensor, { bias: this.bias.tensor, math: this.math });
    this.#lora.forEach((target, i) => {
      if (target.isActive) target.addTo(y.slice(1, i * target.outFeatures, (i + 1) * target.outFeatures), x);
    });
    return y;
  }
}
