// Builds libqformer_emulated.so, the GPU backend over the SIMT emulator, into build/emulated. Skipped when none of its
// sources has changed since the last success. Prints one line when it builds. `--force` builds anyway.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fingerprint, isStamped, writeStamp } from './fingerprint.mjs';
import { step, StepError } from './steps.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const build = join(root, 'build', 'emulated');
const INPUTS = ['cuda', 'csrc/backend', 'test/emulator', 'cmake/emulated.cmake'];
const JOBS = '2';

/** Path of the library, whether or not it exists. */
export const emulatedLibrary = join(build, 'libqformer_emulated.so');

/** Configures the build folder for the library and the native tests on it. */
export function configureEmulated() {
  const args = ['-S', join(root, 'cuda'), '-B', build, '-DQFORMER_EMULATED=ON', '-DQFORMER_WERROR=ON'];
  step('Configuring the emulated GPU', 'cmake', args, { cwd: root });
  return build;
}

/** Builds the library where its sources changed; throws a StepError. */
export function buildEmulated({ force = false } = {}) {
  const value = fingerprint(root, INPUTS);
  const stamp = join(build, '.stamp');
  if (!force && existsSync(emulatedLibrary) && isStamped(stamp, value)) return;
  configureEmulated();
  const args = ['--build', build, '--target', 'qformer_emulated', '--parallel', JOBS];
  step('Building the emulated GPU', 'cmake', args, { cwd: root });
  writeStamp(stamp, value);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    buildEmulated({ force: process.argv.includes('--force') });
  } catch (error) {
    if (!(error instanceof StepError)) throw error;
    console.error(error.message);
    process.exitCode = 1;
  }
}
