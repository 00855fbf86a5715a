// Builds and runs the native tests: `node scripts/native-tests.mjs [address|undefined|thread|address,undefined]`.
//
// Each sanitizer set has a build folder of its own, so that switching does not rebuild everything.
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const sanitize = process.argv[2] ?? '';
const build = join(root, 'build-tests', sanitize.replaceAll(',', '-') || 'plain');

function run(command, args, env = {}) {
  const { status, error } = spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, ...env } });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

run('cmake', ['-S', root, '-B', build, '-DQFORMER_NATIVE_TESTS=ON', `-DQFORMER_SANITIZE=${sanitize}`]);
run('cmake', ['--build', build, '--parallel', String(availableParallelism())]);
run(join(build, 'native_tests'), process.argv.slice(3), {
  ASAN_OPTIONS: 'detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1',
  UBSAN_OPTIONS: 'print_stacktrace=1',
});
