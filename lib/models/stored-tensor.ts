// A tensor of a file as the model wants it: in place where the file has it that way, and a dense copy of this one tensor where its
// axes lie in another order (a transposed matrix, a convolution in channels-last order).

import type { TensorEntry } from '../io/safetensors.js';
import { scope, type Dtype, type MappedFile, type Tensor } from '../tensor/index.js';

/** The stored dtypes that parameters may have. */
export const STORED_DTYPES: Readonly<Record<string, Dtype>> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };

/** The tensor of `entry`, whose file is mapped, in its stored dtype: [entry.shape]. */
export function storedTensor(file: MappedFile, { offset, shape, dtype, order }: TensorEntry, device: string): Tensor {
  const stored = STORED_DTYPES[dtype]!;
  if (order === undefined) return file.tensor(offset, shape, stored, device);
  return scope(() => {
    const axes = [...order];
    let view = file.tensor(
      offset,
      axes.map((axis) => shape[axis]!),
      stored,
      device,
    );
    for (let axis = 0; axis < axes.length; axis++) {
      const at = axes.indexOf(axis);
      if (at === axis) continue;
      view = view.transpose(axis, at);
      axes[at] = axes[axis]!;
      axes[axis] = axis;
    }
    return view.contiguous();
  });
}
