// Builds and runs the native tests on the emulated GPU: `node scripts/emulator-tests.mjs [PROGRAM] [TEXT]`.
//
// Each test/cuda/*_test.cpp and test/emulator/*_test.cpp is a program of its own; PROGRAM selects by part of its name,
// TEXT its cases. All run, also after a failure; exit code 1 when any failed.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { configureEmulated } from './build-emulated.mjs';
import { step, StepError } from './steps.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const [filter = '', ...text] = process.argv.slice(2);
const programs = ['test/cuda', 'test/emulator']
  .map((folder) => join(root, folder))
  .filter((folder) => existsSync(folder))
  .flatMap((folder) => readdirSync(folder))
  .map((file) => /^(.*_test)\.cpp$/.exec(file)?.[1])
  .filter((name) => name !== undefined && name.includes(filter));

/** Builds a target; what the build said where it has failed. */
function buildError(build, target) {
  try {
    step(`Building ${target}`, 'cmake', ['--build', build, '--target', target, '--parallel', '2'], { cwd: root });
    return undefined;
  } catch (error) {
    if (!(error instanceof StepError)) throw error;
    return error.message;
  }
}

function passes(build, program) {
  const begin = performance.now();
  const { status, signal } = spawnSync(join(build, program), text, { stdio: ['ignore', 'inherit', 'inherit'] });
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  console.log(`${program}: ${status === 0 ? 'ok' : `FAILED (${signal ?? `exit code ${status}`})`}, ${seconds} s`);
  return status === 0;
}

if (programs.length === 0) {
  console.error(`emulator-tests: no program is named '${filter}'`);
  process.exit(2);
}
try {
  const build = configureEmulated();
  // All at once, which keeps both cores busy; one by one where one is broken.
  const areBuilt = filter === '' && buildError(build, 'native_tests') === undefined;
  const isBuilt = (program) => {
    const error = areBuilt ? undefined : buildError(build, program);
    if (error !== undefined) console.error(error);
    return error === undefined;
  };
  const failed = programs.filter((program) => !isBuilt(program) || !passes(build, program));
  console.log(`emulator-tests: ${programs.length - failed.length} passed, ${failed.length} failed`);
  if (failed.length > 0) process.exitCode = 1;
} catch (error) {
  if (!(error instanceof StepError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
