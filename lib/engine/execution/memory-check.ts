// Refuses a checkpoint that cannot fit before anything of it is loaded: a machine that runs out of memory half way kills the
// process, or swaps until nobody can stop it.

import { QFormerError } from '../../errors.js';
import { availableMemory } from '../../io/available-memory.js';
import { estimateCheckpoint, type AnyCheckpoint } from '../../io/memory-estimate.js';
import { chooseActivations } from '../../models/activations.js';
import type { DeviceInfo } from '../../tensor/index.js';
import type { EngineOptions } from '../protocol.js';

/** Bytes that may still be taken on a device; of the CPU within the limits of this process. */
export function freeBytes(device: DeviceInfo): number {
  return device.name === 'cpu' ? Math.min(device.freeMemory, availableMemory()) : device.freeMemory;
}

/** Throws OUT_OF_MEMORY (details: required, available) where `device` cannot hold `checkpoint`, unless `memoryCheck` is false. */
export function requireMemory(checkpoint: AnyCheckpoint, options: EngineOptions, device: DeviceInfo): void {
  if (options.memoryCheck === false) return;
  const activations = chooseActivations(checkpoint, { device: device.name, dtype: options.dtype ?? 'auto' });
  const available = freeBytes(device);
  const estimate = estimateCheckpoint(checkpoint, { ...options, activations }, available);
  const { required, mapped, copied } = estimate;
  if (required <= available) return;
  const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(2)} GB`;
  const message =
    `${checkpoint.dir}: needs ${gigabytes(required)} of memory, ${gigabytes(mapped + copied)} of it for weights, but ` +
    `${gigabytes(available)} are available on ${device.name}; memoryCheck: false (--no-memory-check) loads it all the same`;
  throw new QFormerError('OUT_OF_MEMORY', message, { required, available, device: device.name });
}
