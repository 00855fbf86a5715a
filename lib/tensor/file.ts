// Memory-mapped files: how weights reach the device without passing through JavaScript.

import { native, type DeviceInfo, type UnusedDevice, type Handle } from './binding.js';
import { dtypeCode, type Dtype } from './dtype.js';
import { Tensor } from './tensor.js';

/** A read-only mapped file. Tensors made from it keep the mapping alive after `close`. */
export class MappedFile {
  private constructor(private readonly handle: Handle) {}

  /** Errors: IO when the path is missing, unreadable, empty or not a regular file. */
  static open(path: string): MappedFile {
    return new MappedFile(native.fileOpen(path));
  }

  /** Bytes. */
  get size(): number {
    return native.fileSize(this.handle);
  }

  /** A copy of bytes `[offset, offset + length)`. Errors: INVALID_ARGUMENT outside the file. */
  readBytes(offset: number, length: number): Uint8Array {
    return native.fileBytes(this.handle, offset, length);
  }

  /** The tensor at byte `offset`: in place where the device reads host memory and the offset is aligned, else a copy. */
  tensor(offset: number, shape: readonly number[], dtype: Dtype, device = 'cpu'): Tensor {
    return new Tensor(native.fileTensor(this.handle, offset, shape, dtypeCode(dtype), device));
  }

  close(): void {
    native.fileClose(this.handle);
  }
}

/**
 * The devices of this machine that ops can run on. `probe: false` lists only those known so far (the CPU at least) and does
 * not look for a GPU driver and backend libraries.
 */
export function devices({ probe = true }: { probe?: boolean } = {}): DeviceInfo[] {
  return native.listDevices(probe ? 1 : 0);
}

/** The kinds of devices that cannot be used here, and why. */
export function unusedDevices(): UnusedDevice[] {
  return native.listUnusedDevices();
}

/** Sets how many threads CPU ops use, for the whole process. Errors: INVALID_ARGUMENT outside 1…1024. */
export function setThreads(threads: number): void {
  native.setThreads(threads);
}

export function getThreads(): number {
  return native.getThreads();
}

/** Gives memory that the C library holds free, whoever had used it, back to the system. Takes some milliseconds. */
export function trimMemory(): void {
  native.trimMemory();
}
