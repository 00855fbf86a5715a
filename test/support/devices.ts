// The devices that tests run on: the CPU, and the emulated GPU where its libraries are built (scripts/build-emulated.mjs). CI
// must have them: there a missing library fails the tests. QFORMER_TEST_DEVICES names others instead, e.g. `cpu,cuda`.
// Imported before the tensor API finds its devices, because it tells the loader where the emulated GPU is.
//
// The emulated GPU is two devices with the same kernels. `emulated` judges every access and collective and takes some twenty times
// longer for it: of long tests it is asked a sample, some of each kind. `emulated-unchecked` judges nothing and runs what the CPU runs,
// but for the longest tests.

import { existsSync } from 'node:fs';
import { delimiter } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { Tensor, devices, scope, type Dtype } from '../../lib/tensor/index.js';

const libraries = ['emulated', 'unchecked'].map((name) =>
  fileURLToPath(new URL(`../../build/emulated/libqformer_${name}.so`, import.meta.url)),
);
const isEmulatedBuilt = libraries.every(existsSync);
if (isEmulatedBuilt && !(process.env.QFORMER_BACKENDS ?? '').includes(libraries[0]!)) {
  process.env.QFORMER_BACKENDS = [...libraries, process.env.QFORMER_BACKENDS].filter(Boolean).join(delimiter);
}

const named = process.env.QFORMER_TEST_DEVICES?.split(',').map((name) => name.trim());
const found = devices();

const CHECKED = 'emulated';
const UNCHECKED = 'emulated-unchecked';

/** Names of the devices to test, `cpu` first. */
export const testDevices: readonly string[] = named ?? (isEmulatedBuilt ? ['cpu', CHECKED, UNCHECKED] : ['cpu']);

/** Dtypes that a device computes in, f32 first. */
export function activationDtypes(device: string): Dtype[] {
  return found.find(({ name }) => name === device || name === `${device}:0`)?.activationDtypes ?? [];
}

/** A device and a dtype that it computes in. */
export interface Run {
  device: string;
  dtype: 'f32' | 'f16' | 'bf16';
}

/** Every device in every dtype that it computes in. */
export const runs: readonly Run[] = testDevices.flatMap((device) =>
  activationDtypes(device).map((dtype) => ({ device, dtype: dtype as Run['dtype'] })),
);

/** Those in 16 bits: none on the CPU, which computes in f32 whatever the weights are. */
export const halfRuns: readonly Run[] = runs.filter(({ dtype }) => dtype !== 'f32');

/** Options that let a model compute so: on the CPU from the weights as stored, on a GPU from copies in the dtype. */
export const loadedFor = ({ device, dtype }: Run): { device: string; dtype: 'auto' | Run['dtype'] } => ({
  device,
  dtype: device === 'cpu' ? 'auto' : dtype,
});

/** Those for f32. */
export const inF32 = (device: string) => loadedFor({ device, dtype: 'f32' });

/** Whether a device works behind the caller's back, so that what it finds wrong comes with the next read. */
export const isAsync = (device: string): boolean => device !== 'cpu';

/** Whether a device is the emulated GPU with its checks, which is asked samples. */
export const isChecked = (device: string): boolean => device === CHECKED;

/** Whether it is the emulated GPU without them, which is asked nearly everything, but not all of it in every dtype. */
export const isUnchecked = (device: string): boolean => device === UNCHECKED;

/** Whether it is either, so that it is not asked to repeat what says nothing new of a device. */
export const isEmulated = (device: string): boolean => isChecked(device) || isUnchecked(device);

/** All cases of one kind; on the emulated GPU with checks the first `count` of them. */
export const sample = <T>(device: string, cases: readonly T[], count = 1): readonly T[] =>
  isChecked(device) ? cases.slice(0, count) : cases;

/** Runs `fn` and waits for the device, so that an error found there is thrown here. */
export function settled<T>(device: string, fn: () => T): T {
  const result = fn();
  if (isAsync(device)) scope(() => Tensor.zeros([1], { device }).toArray());
  return result;
}

/** In a suite of its own per test file that runs on devices: says what is missing instead of passing without it. */
export function expectDevices(): void {
  describe('the devices under test', () => {
    it('are all there', () => {
      const names = found.map(({ name }) => name);
      for (const device of testDevices) expect(names.concat(names.map((n) => n.split(':')[0]!))).toContain(device);
    });
    it.runIf(process.env.CI === '1' || process.env.CI === 'true')('include the emulated GPU in CI', () => {
      expect(
        named ?? isEmulatedBuilt,
        `one of ${libraries.join(', ')} is missing: run node scripts/build-emulated.mjs`,
      ).toBeTruthy();
    });
  });
}
