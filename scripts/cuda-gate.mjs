// The CUDA sources must compile for every architecture, and compile well: `node scripts/cuda-gate.mjs [ARCHITECTURES]`, for
// example 80, which leaves others out. One of 80 to 89 must be among them. Of the architectures that sources tell apart, those
// left out compile decode.cu, which has most of what is their own: not packed.h and the tiles of attention on 7.5.
//
// - nvcc (CUDACXX, PATH or /usr/local/cuda) builds the library as it ships; where there is none the gate says so and passes.
// - No hot kernel spills registers to memory, and ptxas gives none of the warnings that mean a kernel was serialised.
// - The instructions that a fast kernel stands on are there: in the machine code where a disassembler is at hand
//   (cuobjdump), else in the PTX of one architecture.
// - The library stays small enough to be an npm package.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, delimiter, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { capture } from './steps.mjs';

const JOBS = '2';
const MAX_COMPRESSED_BYTES = 60e6;
/** Kernels on the path of every token or image; a spill in one of them fails the gate. */
const HOT = /gemm|linear|gemv|skinny|decode|attention|qkv|qformer|norm|patch_embedding|lora_apply/i;
/** setmaxnreg ignored; wgmma serialised, for two reasons. */
const BAD_WARNINGS = /\b(C7508|C7510|C7511)\b/;
/** What must be in the code of a file: PTX and SASS spellings. A file that is not there yet is passed over. */
const INSTRUCTIONS = [
  { files: /gemm_(f16|bf16)\.cu$/, ptx: ['mma.sync', 'ldmatrix', 'cp.async'], sass: ['HMMA', 'LDSM', 'LDGSTS'] },
  { files: /\/(qkv_|quant_)?decode\.cu$/, ptx: ['mma.sync', 'ldmatrix', 'cp.async'], sass: ['HMMA', 'LDSM', 'LDGSTS'] },
  { files: /attention_(f16|bf16)\.cu$/, ptx: ['mma.sync', 'ldmatrix', 'cp.async'], sass: ['HMMA', 'LDSM', 'LDGSTS'] },
];

/** The oldest architectures of each way that a source takes (QF_DEVICE_ARCH). */
const DISTINCT = ['75', '80', '90'];

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const build = join(root, 'build', 'cuda-gate');

export function findNvcc() {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/cuda/bin'];
  return [process.env.CUDACXX, ...folders.map((folder) => join(folder, 'nvcc'))].find(
    (file) => file && existsSync(file),
  );
}

function run(title, command, args) {
  const begin = performance.now();
  const result = capture(command, args, { cwd: root });
  console.log(
    `cuda-gate: ${title}: ${result.ok ? 'ok' : 'FAILED'}, ${((performance.now() - begin) / 1000).toFixed(0)} s`,
  );
  if (!result.ok) console.error(result.output.split('\n').slice(-80).join('\n'));
  return result;
}

/** One entry per kernel and architecture from the output of ptxas -v. */
export function parseKernels(log) {
  const kernels = [];
  let kernel;
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '(\w+)' for '(sm_\w+)'/.exec(line);
    if (entry) kernels.push((kernel = { name: entry[1], arch: entry[2], spills: 0, registers: 0 }));
    if (!kernel) continue;
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spills) kernel.spills = Math.max(kernel.spills, Number(spills[1]), Number(spills[2]));
    const registers = /Used (\d+) registers/.exec(line);
    if (registers) kernel.registers = Number(registers[1]);
  }
  return kernels;
}

const demangle = (name) => capture('c++filt', [name]).output.trim() || name;

/** `architectures`: '' for all. */
function configure(nvcc, architectures) {
  const generator = capture('ninja', ['--version']).ok ? ['-G', 'Ninja'] : [];
  const checks = ['-DQFORMER_PTXAS_VERBOSE=ON', '-DQFORMER_WERROR=ON', '-DQFORMER_KEEP_PTX=ON'];
  const chosen = architectures.split(';').filter(Boolean);
  const sample = chosen.length === 0 ? [] : DISTINCT.filter((architecture) => !chosen.includes(architecture));
  const options = [
    `-DCMAKE_CUDA_COMPILER=${nvcc}`,
    `-DQFORMER_CUDA_ARCHITECTURES=${architectures}`,
    `-DQFORMER_SAMPLE_ARCHITECTURES=${sample.join(';')}`,
    ...checks,
  ];
  return run('configure', 'cmake', ['-S', join(root, 'cuda'), '-B', build, ...generator, ...options]);
}

/** Everything is compiled anew, because the messages are what is checked. */
function compile() {
  const native = existsSync(join(build, 'build.ninja')) ? [] : ['--', '--output-sync=target'];
  const result = run('compile', 'cmake', ['--build', build, '--clean-first', '--parallel', JOBS, ...native]);
  writeFileSync(join(build, 'build.log'), result.output);
  return result;
}

function checkKernels(log) {
  const kernels = parseKernels(log);
  const spilling = kernels.filter(({ spills }) => spills > 0);
  const problems = [];
  for (const { name, arch, spills, registers } of spilling) {
    const text = `${demangle(name)} spills ${spills} bytes on ${arch} (${registers} registers)`;
    if (HOT.test(name)) problems.push(text);
    else console.log(`cuda-gate: note: ${text}`);
  }
  const archs = [...new Set(kernels.map(({ arch }) => arch))];
  console.log(`cuda-gate: ${kernels.length} kernels over ${archs.join(' ')}, ${spilling.length} of them spill`);
  if (kernels.length === 0) problems.push('ptxas reported no kernel');
  for (const line of log.split('\n').filter((text) => BAD_WARNINGS.test(text))) problems.push(line.trim());
  return problems;
}

const sources = () =>
  readdirSync(join(root, 'cuda'), { recursive: true })
    .filter((file) => file.endsWith('.cu'))
    .map((file) => join('cuda', file));

function checkInstructions(nvcc, library) {
  const disassembler = join(dirname(nvcc), 'cuobjdump');
  if (existsSync(disassembler)) {
    const sass = execFileSync(disassembler, ['-sass', library], { encoding: 'utf8', maxBuffer: 1 << 30 });
    const wanted = [...new Set(INSTRUCTIONS.flatMap((rule) => rule.sass))];
    return wanted.filter((name) => !sass.includes(name)).map((name) => `${name} is nowhere in the machine code`);
  }
  console.log('cuda-gate: machine code not looked at: skipped: no cuobjdump. PTX of compute_80 instead:');
  return INSTRUCTIONS.flatMap(({ files, ptx }) => {
    const matching = sources().filter((file) => files.test(file));
    const text = matching.map((file) => ptxOf(file)).join('\n');
    if (matching.length > 0) console.log(`cuda-gate:   ${matching.join(', ')}: ${ptx.join(', ')}`);
    return matching.length === 0
      ? []
      : ptx.filter((name) => !text.includes(name)).map((name) => `${matching}: no ${name}`);
  });
}

/** The PTX that the compilation of `file` has left behind; compiled for one architecture, its name names none. */
function ptxOf(file) {
  const names = ['.compute_80.ptx', '.ptx'].map((ending) => join(build, 'ptx', basename(file, '.cu') + ending));
  return readFileSync(names.find(existsSync) ?? names[0], 'utf8');
}

function checkSize(library) {
  spawnSync('strip', [library]);
  const bytes = readFileSync(library);
  const compressed = gzipSync(bytes, { level: 9 }).length;
  const megabytes = (count) => `${(count / 1e6).toFixed(2)} MB`;
  console.log(
    `cuda-gate: ${relative(build, library)}: ${megabytes(bytes.length)} raw, ${megabytes(compressed)} compressed`,
  );
  return compressed > MAX_COMPRESSED_BYTES
    ? [`the library takes ${megabytes(compressed)} compressed, at most 60 MB`]
    : [];
}

function gate(architectures = '') {
  const nvcc = findNvcc();
  if (nvcc === undefined) {
    console.log('cuda-gate: skipped: no nvcc');
    return true;
  }
  if (!configure(nvcc, architectures).ok) return false;
  const { ok, output } = compile();
  if (!ok) return false;
  const library = join(
    build,
    readdirSync(build).find((file) => /^libqformer_cuda\d+\.so$/.test(file)),
  );
  const problems = [...checkKernels(output), ...checkInstructions(nvcc, library), ...checkSize(library)];
  for (const problem of problems) console.error(`cuda-gate: ${problem}`);
  return problems.length === 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = gate(process.argv[2]) ? 0 : 1;
