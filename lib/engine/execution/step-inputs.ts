// The inputs of one step as tensors: views of one tensor that holds them all, made by one copy to the device.

import type { BatchInputs, KvCache } from '../../models/model.js';
import type { Tensor } from '../../tensor/index.js';
import type { BatchArrays } from '../scheduling/batch.js';

/** What a forward pass over a step reads. */
export interface StepInputs {
  /** [t] i32 */
  ids: Tensor;
  /** [sampled] i32: rows of the hidden states to take logits of */
  logitRows: Tensor;
  batch: BatchInputs;
}

/** Views of `packed`, a tensor of the size and layout of `arrays.packed`. */
export function viewStep(packed: Tensor, arrays: BatchArrays, kvCache: KvCache): StepInputs {
  const part = (array: Int32Array): Tensor => {
    const start = (array.byteOffset - arrays.packed.byteOffset) / array.BYTES_PER_ELEMENT;
    return packed.slice(0, start, start + array.length);
  };
  const { cross } = arrays;
  const rows = cross.contextLens.length;
  return {
    ids: part(arrays.ids),
    logitRows: part(arrays.logitRows),
    batch: {
      positions: part(arrays.positions),
      cuSeqlensQ: part(arrays.cuSeqlensQ),
      slotMapping: part(arrays.slotMapping),
      blockTable: part(arrays.blockTable).reshape([arrays.contextLens.length, arrays.width]),
      contextLens: part(arrays.contextLens),
      kvCache,
      ...(rows > 0 && {
        cross: {
          cuSeqlensQ: part(cross.cuSeqlensQ),
          blockTable: part(cross.blockTable).reshape([rows, cross.width]),
          contextLens: part(cross.contextLens),
        },
      }),
    },
  };
}
