// What the built addon and GPU libraries ask of the machine they will run on, and whether its instruction sets stay in their files.
//
// - The newest glibc and libstdc++ symbol version it needs (floors: what Ubuntu 22.04 has).
// - An object of csrc/cpu/isa defines weak symbols only in the namespace of its instruction set: a shared inline function
//   compiled for AVX-512 could be the copy that the linker keeps for everybody, and would crash on a machine without it.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const FLOORS = { GLIBC: '2.34', GLIBCXX: '3.4.30', CXXABI: '1.3.13' };
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const addon = join(root, 'build', 'Release', 'qformer.node');
const objects = join(root, 'build', 'CMakeFiles', 'qformer_cpu.dir', 'csrc', 'cpu', 'isa');

const output = (command, args) => execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28 });

function compareVersions(a, b) {
  const [left, right] = [a, b].map((text) => text.split('.').map(Number));
  const at = left.findIndex((part, index) => part !== (right[index] ?? 0));
  return at === -1 ? left.length - right.length : left[at] - (right[at] ?? 0);
}

function newestNeeded(symbols, name) {
  const versions = [...symbols.matchAll(new RegExp(`\\b${name}_([0-9.]+)`, 'g'))].map((match) => match[1]);
  return versions.sort(compareVersions).at(-1);
}

/** Symbols that an object defines weakly and that another object might define too. */
function sharedWeakSymbols(object, isa) {
  return output('nm', ['-C', '--defined-only', object])
    .split('\n')
    .filter((line) => /^[0-9a-f]* ?[WVu] /.test(line))
    .map((line) => line.replace(/^[0-9a-f]* ?/, ''))
    .filter((symbol) => !symbol.includes(`::${isa}::`));
}

/** The addon, and the GPU libraries where they were built: beside it or by the compile gate. */
function binaries() {
  const folders = [dirname(addon), join(root, 'build', 'cuda-gate')].filter((folder) => existsSync(folder));
  const libraries = folders.flatMap((folder) => readdirSync(folder).map((file) => join(folder, file)));
  return [addon, ...libraries.filter((file) => /libqformer_cuda\d+\.so$/.test(file))];
}

let failed = false;
for (const file of binaries()) {
  const symbols = output('objdump', ['-T', file]);
  for (const [name, floor] of Object.entries(FLOORS)) {
    const needed = newestNeeded(symbols, name);
    const tooNew = needed !== undefined && compareVersions(needed, floor) > 0;
    failed ||= tooNew;
    const verdict = `needs ${name} ${needed ?? 'none'} (floor ${floor})${tooNew ? ' TOO NEW' : ''}`;
    console.log(`check-binary: ${basename(file)}: ${verdict}`);
  }
}
for (const file of existsSync(objects) ? readdirSync(objects, { recursive: true }) : []) {
  const isa = /(?:^|_)(avx2|avx512|avx512bf16|amx|neon)(?:_.*)?\.cpp\.o$/.exec(file)?.[1];
  if (!isa) continue;
  const weak = sharedWeakSymbols(join(objects, file), isa);
  failed ||= weak.length > 0;
  for (const symbol of weak.slice(0, 5))
    console.error(`check-binary: isa/${file} defines a weak symbol outside its namespace: ${symbol}`);
  if (weak.length > 5) console.error(`check-binary: isa/${file}: ${weak.length} weak symbols in all`);
}
process.exitCode = failed ? 1 : 0;
