// Two archives that check and measure qformer on a borrowed GPU machine: `npm run gpu-bundle`.
//
// qformer-gpu.tar.xz holds everything that run needs but data, because such a machine has a driver and nothing else: Node
// itself (stripped), the built package, the CUDA library, the emulated GPU, the tests as plain JavaScript, the benchmarks,
// and run.sh. qformer-gpu-data.tar.xz holds models and fixtures; where a checkout of this version lies on the machine, run.sh
// takes them from there (QFORMER_CHECKOUT=FOLDER). Both are in build/gpu-bundle; unpack them in one folder and start
// qformer-gpu/run.sh. See scripts/gpu/sections.mjs. The CUDA library takes most of the time; `npm run gpu-bundle -- --cuda
// FILE` takes one that is there, such as the compile gate's.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { findNvcc } from './cuda-gate.mjs';
import { capture, step, StepError } from './steps.mjs';

const MAX_BYTES = 60e6;
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const work = join(root, 'build', 'gpu-bundle');
const bundle = join(work, 'qformer-gpu');
const at = (...parts) => join(bundle, ...parts);

/** Test files by section, those that run on a device; a file that does not exist (any more) fails the bundling. */
const TESTS = {
  ops: [
    ...['tensor', 'graph', 'op-fixtures', 'op-invariance', 'op-errors', 'fused-ops', 'half-precision-ops'],
    ...['attention-bias', 'lora', 'sampling', 'preprocess'],
  ],
  models: [
    ...['nn', 'weights', 'vit', 'qformer', 'blip2', 'language-models', 'llama', 't5'],
    ...['retrieval-model', 'quantized-weights'],
  ],
  engine: [
    ...['engine-fixtures', 'beam-fixtures', 'adapters', 'demo-model-reference', 'ziya', 'encoder-decoder', 'rank'],
    ...['adapters-t5', 'image-364', 'engine-everything'],
  ],
  sanitizer: ['fused-ops', 'lora', 'op-fixtures'],
};
/** Packages that the library, its tests and the test runner import. */
const PACKAGES = ['sharp', '@huggingface/tokenizers', 'node-gyp-build', 'commander', 'cli-progress', 'fast-check'];
const TEST_PACKAGES = ['@vitest/runner', '@vitest/expect'];
/** Fixtures and checkpoints that these tests and the demonstration read: weights hardly compress, so no others. */
const DATA = [
  ...['kernels', 'sampling', 'emoji-eval', 'lora', 'llama-gqa-tiny', 'instructblip-vicuna-tiny'],
  ...['blip2-opt-tiny', 'blip2-flant5-tiny', 'instructblip-flant5-tiny', 'ziya-visual-tiny', 'generated'],
  ...['blip2-itm-tiny', 'torch-files/llama', 'preprocess/expected.json', 'preprocess/expected.safetensors'],
].map((fixture) => `test/fixtures/${fixture}`);
const MODELS = ['models/emoji-vlm', 'models/samples'];
/** Parts of packages that nothing runs. */
const UNUSED = /\.(map|md|d\.ts|d\.mts|d\.cts|ts|flow)$|\/(docs?|test|tests|install|src)\//i;

const nodeModules = join(root, 'node_modules');

/** Folders of `names` and of all that they depend on, as far as installed here. */
function packageFolders(names) {
  const found = new Set();
  const add = (name, from) => {
    for (let folder = from; ; folder = dirname(folder)) {
      const candidate = join(folder, 'node_modules', name);
      if (existsSync(join(candidate, 'package.json'))) {
        if (found.has(candidate)) return;
        found.add(candidate);
        const { dependencies, optionalDependencies } = JSON.parse(
          readFileSync(join(candidate, 'package.json'), 'utf8'),
        );
        for (const next of Object.keys({ ...dependencies, ...optionalDependencies })) add(next, candidate);
        return;
      }
      if (folder === dirname(folder)) return;
    }
  };
  for (const name of names) add(name, root);
  return [...found];
}

function copyPackages() {
  const filter = (path) =>
    !UNUSED.test(relative(nodeModules, path)) || /sharp[^/]*\/(src|install)\/.*\.(node|js)$/.test(path);
  for (const folder of packageFolders([...PACKAGES, ...TEST_PACKAGES])) {
    if (folder.includes('/@types/')) continue;
    cpSync(folder, at(relative(root, folder)), { recursive: true, filter });
  }
  const vitest = at('node_modules', 'vitest');
  mkdirSync(vitest, { recursive: true });
  cpSync(join(root, 'scripts', 'gpu', 'testing.mjs'), join(vitest, 'index.mjs'));
  writeFileSync(
    join(vitest, 'package.json'),
    JSON.stringify({ name: 'vitest', type: 'module', exports: './index.mjs' }),
  );
}

const filesBelow = (folder, pattern) =>
  readdirSync(join(root, folder), { recursive: true })
    .map((file) => join(folder, file))
    .filter((file) => pattern.test(file) && statSync(join(root, file)).isFile());

/** lib/ and test/ file by file, so that paths relative to a module stay right; the benchmarks as one file. */
async function compileSources() {
  const { build } = await import('esbuild'); // installed by the bootstrap
  const tests = [...new Set(Object.values(TESTS).flat())].map((name) => `test/${name}.test.ts`);
  const entryPoints = [...filesBelow('lib', /\.ts$/), ...filesBelow('test/support', /\.ts$/), ...tests];
  const common = { format: 'esm', platform: 'node', target: 'node20', logLevel: 'warning' };
  await build({ ...common, entryPoints: entryPoints.map((file) => join(root, file)), outbase: root, outdir: bundle });
  const bench = { entryPoints: [join(root, 'bench', 'gpu', 'main.ts')], outfile: at('gpu', 'bench.js') };
  await build({ ...common, ...bench, bundle: true, packages: 'external' });
}

/** The GPU library for every architecture: the one given by `--cuda FILE`, else a new one; undefined without nvcc. */
function buildCuda() {
  const { values } = parseArgs({ options: { cuda: { type: 'string' } } });
  if (values.cuda !== undefined) return resolve(values.cuda);
  const nvcc = findNvcc();
  if (nvcc === undefined) return undefined;
  const tree = join(work, 'cuda');
  const ninja = capture('ninja', ['--version']).ok ? ['-G', 'Ninja'] : [];
  const cached = capture('ccache', ['--version']).ok ? ['-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache'] : [];
  const options = [`-DCMAKE_CUDA_COMPILER=${nvcc}`, ...ninja, ...cached, '-DQFORMER_WERROR=ON'];
  step('Configuring the CUDA library', 'cmake', ['-S', join(root, 'cuda'), '-B', tree, ...options]);
  step('Building the CUDA library', 'cmake', ['--build', tree, '--parallel', '2']);
  const file = readdirSync(tree).find((name) => /^libqformer_cuda\d+\.so$/.test(name));
  return join(tree, file);
}

/** Without instructions of this machine's own, because the bundle runs on another. */
function buildEmulated() {
  const tree = join(work, 'emulated');
  const ninja = capture('ninja', ['--version']).ok ? ['-G', 'Ninja'] : [];
  const cached = capture('ccache', ['--version']).ok ? ['-DCMAKE_CXX_COMPILER_LAUNCHER=ccache'] : [];
  const options = ['-DQFORMER_EMULATED=ON', '-DQFORMER_EMULATED_PORTABLE=ON', ...ninja, ...cached];
  step('Configuring the emulated GPU', 'cmake', ['-S', join(root, 'cuda'), '-B', tree, ...options]);
  step('Building the emulated GPU', 'cmake', ['--build', tree, '--target', 'qformer_emulated', '--parallel', '2']);
  return join(tree, 'libqformer_emulated.so');
}

function copyBinary(source, target) {
  mkdirSync(dirname(target), { recursive: true });
  cpSync(source, target, { dereference: true });
  step(`Stripping ${relative(bundle, target)}`, 'strip', [target]);
}

function copyData() {
  for (const path of ['dist', ...MODELS, ...DATA, 'package.json', 'LICENSE', 'NOTICE']) {
    cpSync(join(root, path), at(path), { recursive: true, filter: (file) => !file.endsWith('.map') });
  }
  for (const file of ['sections.mjs', 'report.mjs', 'test-file.mjs']) {
    cpSync(join(root, 'scripts', 'gpu', file), at('gpu', file));
  }
  cpSync(join(root, 'bench', 'gpu', 'peers.py'), at('gpu', 'peers.py'));
  cpSync(join(root, 'scripts', 'gpu', 'run.sh'), at('run.sh'));
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const files = Object.entries(TESTS).map(([name, tests]) => [name, tests.map((test) => `test/${test}.test.js`)]);
  writeFileSync(at('gpu', 'manifest.json'), JSON.stringify({ version, tests: Object.fromEntries(files) }, null, 1));
}

/** Packs files of the bundle into build/gpu-bundle/NAME.tar.xz and says how large that is. */
function pack(name, args) {
  const [flag, suffix] = capture('xz', ['--version']).ok ? ['-J', 'xz'] : ['-z', 'gz'];
  const archive = join(work, `${name}.tar.${suffix}`);
  step(`Packing ${name}`, 'tar', ['-C', work, flag, '-cf', archive, ...args], {
    env: { ...process.env, XZ_OPT: '-6 -T2' },
  });
  const { size } = statSync(archive);
  console.log(`gpu-bundle: ${relative(root, archive)}, ${(size / 1e6).toFixed(1)} MB`);
  if (size > MAX_BYTES) throw new StepError(`gpu-bundle: more than ${MAX_BYTES / 1e6} MB`);
}

async function main() {
  execFileSync(process.execPath, [join(root, 'scripts', 'bootstrap.mjs')], { stdio: 'inherit' });
  rmSync(bundle, { recursive: true, force: true });
  mkdirSync(bundle, { recursive: true });
  const cuda = buildCuda();
  if (cuda === undefined)
    console.log('gpu-bundle: no nvcc: the bundle has no CUDA library and runs on cpu and emulated only');
  else copyBinary(cuda, at('build', 'Release', relative(dirname(cuda), cuda)));
  copyBinary(buildEmulated(), at('build', 'emulated', 'libqformer_emulated.so'));
  copyBinary(join(root, 'build', 'Release', 'qformer.node'), at('build', 'Release', 'qformer.node'));
  copyBinary(process.execPath, at('bin', 'node'));
  await compileSources();
  copyPackages();
  copyData();
  const data = ['qformer-gpu/models', 'qformer-gpu/test/fixtures'];
  pack('qformer-gpu', [...data.map((path) => `--exclude=${path}`), 'qformer-gpu']);
  pack('qformer-gpu-data', data);
}

main().catch((error) => {
  if (!(error instanceof StepError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
});
