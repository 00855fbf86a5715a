// Brings a clone from nothing to runnable, and up to date after a change: npm packages, the addon, dist/; with `--tests`
// also the emulated GPU that the tests run on.
//
// Runs before `npm run demo` and `npm test`, when node_modules may not exist yet, so it uses Node built-ins alone. Each step
// is skipped when a fingerprint of its inputs is the one that last succeeded; with nothing to do it prints nothing.
// `--force` redoes every step.
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildEmulated } from './build-emulated.mjs';
import { fingerprint, isStamped, writeStamp } from './fingerprint.mjs';
import { step, StepError } from './steps.mjs';
import { ensureToolchain } from './toolchain.mjs';

const NODE_MINIMUM = [20, 9];
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const at = (...parts) => join(root, ...parts);
const force = process.argv.includes('--force');

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major > NODE_MINIMUM[0] || (major === NODE_MINIMUM[0] && minor >= NODE_MINIMUM[1])) return;
  throw new StepError(`qformer needs Node ${NODE_MINIMUM.join('.')} or newer; this is ${process.versions.node}.`);
}

/** Runs `work` unless `product` exists and was made from the same inputs. */
function whenChanged(name, inputs, product, stamp, work) {
  const value = fingerprint(root, inputs);
  if (!force && existsSync(product) && isStamped(stamp, value)) return;
  work();
  if (!existsSync(product)) throw new StepError(`${name} succeeded but did not make ${product}.`);
  writeStamp(stamp, value);
}

function installPackages() {
  // Install scripts are not needed: sharp and esbuild bring their binaries as packages, and the addon is built below.
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1', '--loglevel=error'];
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
  const hint = 'Is the npm registry reachable? A proxy or mirror is set with `npm config set registry URL`.';
  step('Installing npm packages', npm, args, { cwd: root, hint, shell: process.platform === 'win32' });
}

function buildAddon() {
  ensureToolchain();
  const cmakeJs = at('node_modules', 'cmake-js', 'bin', 'cmake-js');
  const jobs = String(availableParallelism());
  step('Building the native addon (a minute or two the first time)', process.execPath, [cmakeJs, 'build', '-p', jobs], {
    cwd: root,
  });
}

function buildDist() {
  step('Building dist/', process.execPath, [at('node_modules', 'tsup', 'dist', 'cli-default.js')], { cwd: root });
}

function bootstrap() {
  checkNode();
  const packages = ['package-lock.json'];
  whenChanged('npm', packages, at('node_modules', 'tsup'), at('node_modules', '.bootstrap-packages'), installPackages);

  const native = ['csrc', 'cmake', 'CMakeLists.txt', 'package-lock.json'];
  const addon = at('build', 'Release', 'qformer.node');
  whenChanged('cmake-js', native, addon, at('build', '.bootstrap-addon'), buildAddon);

  const library = ['lib', 'tsup.config.ts', 'tsconfig.json', 'package.json', 'package-lock.json'];
  whenChanged('tsup', library, at('dist', 'tensor.js'), at('build', '.bootstrap-dist'), buildDist);

  if (process.argv.includes('--tests')) buildEmulated({ force });
}

try {
  bootstrap();
} catch (error) {
  if (!(error instanceof StepError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
