// A table of rows looked up by id. The number of rows comes from the stored tensor, never from the configuration:
// checkpoints are re-saved with padded vocabularies without their configuration saying so.

import { ops, type Tensor } from '../tensor/index.js';
import { ANY, type Activations, type Parameter, type ParameterSource } from './parameter.js';

/** y[t] = table[ids[t]] with `PREFIX.weight` [rows, dim]. */
export class Embedding {
  readonly weight: Parameter;
  readonly #activations: Activations;

  constructor(source: ParameterSource, prefix: string, dim: number) {
    this.#activations = source.activations;
    this.weight = source.matrix(`${prefix}.weight`, [ANY, dim]);
  }

  /** Rows of the stored table. */
  get rows(): number {
    return this.weight.shape[0]!;
  }

  /** ids: [t] i32 → [t, dim] activations; INVALID_ARGUMENT for an id outside the table. */
  forward(ids: Tensor): Tensor {
    return ops.embedding(ids, this.weight.tensor, this.#activations);
  }
}

/** The matrix [rows, dim] of a language model's logits. A tied head is the table itself; a copy of it in the file is read by nobody. */
export function outputHead(source: ParameterSource, name: string, table: Embedding, tied: boolean): Parameter {
  if (!tied) return source.matrix(name, table.weight.shape, { quantizable: true });
  source.ignore(name);
  return table.weight;
}

/** hidden: [m, dim] → logits [m, rows] f32 */
export function headLogits(head: Parameter, hidden: Tensor, math: ops.Math): Tensor {
  const { quantized } = head;
  if (quantized !== undefined) return ops.quantLinear(hidden, quantized, { dtype: 'f32' });
  return ops.linear(hidden, head.tensor, { math, dtype: 'f32' });
}
