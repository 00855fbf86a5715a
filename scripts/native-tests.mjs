// Builds and runs the native tests: `node scripts/native-tests.mjs [VARIANT] [TEXT]`, TEXT selects cases by name.
//
// VARIANT is a set of sanitizers (address,undefined or thread) or `aarch64`, a cross build run by qemu, which tests the NEON
// kernels on any machine (Debian: apt-get install g++-aarch64-linux-gnu qemu-user). Each variant has its own build folder.
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const [variant = '', ...filter] = process.argv.slice(2);
const build = join(root, 'build-tests', variant.replaceAll(',', '-') || 'plain');
const program = join(build, 'native_tests');

const AARCH64 = [
  '-DCMAKE_SYSTEM_NAME=Linux',
  '-DCMAKE_SYSTEM_PROCESSOR=aarch64',
  '-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++',
];
const crossed = variant === 'aarch64';

function run(command, args, env = {}) {
  const options = { stdio: ['ignore', 'inherit', 'inherit'], env: { ...process.env, ...env } };
  const { status, error } = spawnSync(command, args, options);
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

const configuration = crossed ? AARCH64 : [`-DQFORMER_SANITIZE=${variant}`];
run('cmake', ['-S', root, '-B', build, '-DQFORMER_NATIVE_TESTS=ON', ...configuration]);
run('cmake', ['--build', build, '--parallel', String(availableParallelism())]);

if (crossed) run('qemu-aarch64', ['-L', '/usr/aarch64-linux-gnu', program, ...filter]);
else {
  run(program, filter, {
    ASAN_OPTIONS: 'detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1',
    UBSAN_OPTIONS: 'print_stacktrace=1',
  });
}
