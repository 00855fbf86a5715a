// In which dtype a model computes. The CPU computes in f32 whatever the weights are. A GPU computes in 16 bits, where its tensor
// cores are: in the checkpoint's own dtype where it can, f32 checkpoints in f16 (their weights are of order 1, and f16 has three
// more bits than bf16), bf16 ones in f16 on a device too old for bf16.

import { QFormerError } from '../errors.js';
import type { CheckpointFiles } from '../io/checkpoint.js';
import type { Activations } from '../nn/parameter.js';
import { devices, type Dtype } from '../tensor/index.js';

/** The activation dtype for a checkpoint on a device; UNSUPPORTED for a dtype that a 16-bit device lacks. */
export function chooseActivations(
  checkpoint: CheckpointFiles,
  { device, dtype }: { device: string; dtype: 'auto' | Activations },
): Activations {
  const known = dtypesOf(device);
  if (!known.includes('f16')) return 'f32';
  if (dtype !== 'auto') {
    if (known.includes(dtype)) return dtype;
    const message = `device ${device} does not compute in ${dtype} (it has ${known.join(', ')})`;
    throw new QFormerError('UNSUPPORTED', message, { device, dtype, known });
  }
  return storedDtype(checkpoint) === 'BF16' && known.includes('bf16') ? 'bf16' : 'f16';
}

/** The dtype of most of a checkpoint's bytes, as safetensors spells it. */
export function storedDtype({ tensors }: CheckpointFiles): string {
  const bytes = new Map<string, number>();
  for (const entry of tensors.values()) bytes.set(entry.dtype, (bytes.get(entry.dtype) ?? 0) + entry.bytes);
  return [...bytes].reduce((best, next) => (next[1] > best[1] ? next : best), ['F32', 0])[0];
}

// An unknown device is left to the first tensor made on it, whose error lists those that exist.
function dtypesOf(device: string): readonly Dtype[] {
  const found = devices({ probe: device !== 'cpu' }).find(({ name }) => name === device || name === `${device}:0`);
  return found?.activationDtypes ?? ['f32'];
}
