// Builds libqformer_emulated.so and libqformer_unchecked.so, the GPU backend over the SIMT emulator with all its checks and
// with none, into build/emulated. Skipped when none of their sources has changed since the last success. Prints one line when it builds. `--force` builds anyway.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fingerprint, isStamped, writeStamp } from './fingerprint.mjs';
import { step, StepError } from './steps.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const build = join(root, 'build', 'emulated');
const INPUTS = ['cuda', 'csrc/backend', 'test/emulator', 'cmake/emulated.cmake'];
const JOBS = '2';

const TARGETS = ['qformer_emulated', 'qformer_unchecked'];
const libraries = TARGETS.map((target) => join(build, `lib${target}.so`));

/** Configures the build folder for the libraries and the native tests on it. */
export function configureEmulated() {
  const args = ['-S', join(root, 'cuda'), '-B', build, '-DQFORMER_EMULATED=ON', '-DQFORMER_WERROR=ON'];
  step('Configuring the emulated GPU', 'cmake', args, { cwd: root });
  return build;
}

/** Builds the libraries where their sources changed; throws a StepError. */
export function buildEmulated({ force = false } = {}) {
  const value = fingerprint(root, INPUTS);
  const stamp = join(build, '.stamp');
  if (!force && libraries.every(existsSync) && isStamped(stamp, value)) return;
  configureEmulated();
  const args = ['--build', build, '--target', ...TARGETS, '--parallel', JOBS];
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
