// Builds the native fuzzers with clang and runs them: `npm run fuzz -- [SECONDS] [NAME]`.
//
// Every csrc/fuzz/fuzz_NAME.cpp runs SECONDS (default 60) from its corpus, csrc/fuzz/corpus/NAME.hex (one input a line).
// New inputs go to build-fuzz/corpus/NAME, crashes to build-fuzz/; a crash ends the run with an error.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { spawnSync } from 'node:child_process';
import { capture } from './steps.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const build = join(root, 'build-fuzz');
const seconds = Number(process.argv[2] ?? 60);
const only = process.argv[3];

if (!Number.isInteger(seconds) || seconds < 1) {
  console.error(`fuzz: SECONDS must be a positive whole number, got ${process.argv[2]}`);
  process.exit(2);
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: build, stdio: ['ignore', 'inherit', 'inherit'] });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

// libFuzzer itself is a package of its own beside clang on Debian, so clang++ alone proves nothing.
function findClang() {
  const probe = { input: 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' };
  const args = ['-fsanitize=fuzzer', '-x', 'c++', '-', '-o', join(build, 'probe')];
  return ['clang++', 'clang++-19', 'clang++-16', 'clang++-15', 'clang++-14'].find(
    (name) => capture(name, args, probe).ok,
  );
}

mkdirSync(build, { recursive: true });
const clang = process.env.CXX ?? findClang();
if (!clang) {
  console.error('The fuzzers need clang with libFuzzer, on Debian 12: apt-get install clang-14 libclang-rt-14-dev');
  process.exit(1);
}

run('cmake', ['-S', root, '-B', build, '-DQFORMER_FUZZ=ON', `-DCMAKE_CXX_COMPILER=${clang}`]);
run('cmake', ['--build', build, '--parallel', String(availableParallelism())]);

const names = readdirSync(join(root, 'csrc', 'fuzz'))
  .map((file) => /^fuzz_(.*)\.cpp$/.exec(file)?.[1])
  .filter((name) => name !== undefined && (only === undefined || name === only));
if (names.length === 0) {
  console.error(`fuzz: no fuzzer is named '${only}'`);
  process.exit(2);
}
for (const name of names) {
  const corpus = join(build, 'corpus', name);
  unpackSeeds(name, corpus);
  console.log(`fuzz_${name}: ${seconds} s`);
  const limits = [`-max_total_time=${seconds}`, '-timeout=60', '-rss_limit_mb=4096', '-malloc_limit_mb=0'];
  run(join(build, `fuzz_${name}`), [...limits, corpus]);
}

function unpackSeeds(name, folder) {
  mkdirSync(folder, { recursive: true });
  const seeds = join(root, 'csrc', 'fuzz', 'corpus', `${name}.hex`);
  if (!existsSync(seeds)) return;
  const lines = readFileSync(seeds, 'utf8').split('\n');
  lines.forEach((line, i) => writeFileSync(join(folder, `seed-${i}`), Buffer.from(line, 'hex')));
}
