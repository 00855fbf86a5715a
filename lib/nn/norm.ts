// Layer norm and RMS norm over the last axis. Weights are f32 whatever the checkpoint stores: they are small, and a
// rounded norm weight would scale whole channels.

import { ops, type Tensor } from '../tensor/index.js';
import type { Parameter, ParameterSource } from './parameter.js';

/** (x − mean) / √(var + eps) · weight + bias with `PREFIX.weight` and `PREFIX.bias` [dim]. */
export class LayerNorm {
  readonly weight: Parameter;
  readonly bias: Parameter;

  constructor(
    source: ParameterSource,
    prefix: string,
    dim: number,
    readonly eps: number,
  ) {
    this.weight = source.vector(`${prefix}.weight`, [dim]);
    this.bias = source.vector(`${prefix}.bias`, [dim]);
  }

  /** x: [..., dim] → same shape */
  forward(x: Tensor): Tensor {
    return ops.layerNorm(x, this.weight.tensor, this.bias.tensor, this.eps);
  }
}

/** x / √(mean(x²) + eps) · weight with `PREFIX.weight` [dim]. */
export class RmsNorm {
  readonly weight: Parameter;

  constructor(
    source: ParameterSource,
    prefix: string,
    dim: number,
    readonly eps: number,
  ) {
    this.weight = source.vector(`${prefix}.weight`, [dim]);
  }

  /** x: [..., dim] → same shape */
  forward(x: Tensor): Tensor {
    return ops.rmsNorm(x, this.weight.tensor, this.eps);
  }
}
