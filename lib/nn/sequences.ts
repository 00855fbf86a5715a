// Packed sequences and stacks of layers: the two things every transformer here does around its layers.
// Sequences of different length lie one after another without padding; cu_seqlens [batch + 1] says where each begins.

import { scope, Tensor } from '../tensor/index.js';

/** Running sum of sequence lengths, [batch + 1] i32: first 0, last the number of rows. */
export function cuSeqlens(lengths: readonly number[], device: string): Tensor {
  const sums = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => (sums[i + 1] = sums[i]! + length));
  return Tensor.fromArray(sums, [sums.length], { device });
}

/** x through all layers in turn; each layer's inner results, and its input, are freed as soon as it is done. */
export function runLayers<L>(
  x: Tensor,
  layers: readonly L[],
  step: (layer: L, x: Tensor, index: number) => Tensor,
): Tensor {
  let hidden = x;
  layers.forEach((layer, index) => {
    const next = scope(() => step(layer, hidden, index));
    if (hidden !== x) hidden.dispose();
    hidden = next;
  });
  return hidden;
}
