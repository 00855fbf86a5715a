// The tools of the native build: CMake, a C++20 compiler, make or ninja. Missing ones are installed where that needs no
// question (root on Debian or Ubuntu); elsewhere the exact command is printed.
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { capture, step, StepError } from './steps.mjs';

const CMAKE_MINIMUM = [3, 21];

// Library features that the sources use, to tell a real C++20 compiler from one that only takes the flag.
const CXX20_PROBE = `
#include <bit>
#include <concepts>
#include <span>
static_assert(std::popcount(7u) == 3 && std::integral<int>);
int main() { int x[2] = {}; return static_cast<int>(std::span<int>(x).size()) - 2; }
`;

function hasCmake() {
  const { ok, output } = capture('cmake', ['--version']);
  const version = ok && /version (\d+)\.(\d+)/.exec(output);
  if (!version) return false;
  const [major, minor] = [Number(version[1]), Number(version[2])];
  return major > CMAKE_MINIMUM[0] || (major === CMAKE_MINIMUM[0] && minor >= CMAKE_MINIMUM[1]);
}

function hasCompiler() {
  const compilers = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++'];
  const program = join(tmpdir(), `qformer-cxx20-${process.pid}.o`);
  return compilers.some(
    (compiler) => capture(compiler, ['-std=c++20', '-x', 'c++', '-c', '-', '-o', program], { input: CXX20_PROBE }).ok,
  );
}

const hasMake = () => ['ninja', 'make'].some((tool) => capture(tool, ['--version']).ok);

const TOOLS = [
  { what: `CMake ${CMAKE_MINIMUM.join('.')} or newer`, present: hasCmake, apt: 'cmake', other: 'cmake' },
  { what: 'a C++20 compiler (g++ 11, clang 14 or newer)', present: hasCompiler, apt: 'g++', other: 'gcc-c++' },
  { what: 'make or ninja', present: hasMake, apt: 'make', other: 'make' },
];

function installCommand(missing) {
  const names = (key) => missing.map((tool) => tool[key]).join(' ');
  if (process.platform === 'darwin') return 'xcode-select --install && brew install cmake';
  if (process.platform === 'win32') return 'winget install Kitware.CMake Microsoft.VisualStudio.2022.BuildTools';
  if (existsSync('/usr/bin/apt-get')) return `sudo apt-get update && sudo apt-get install -y ${names('apt')}`;
  if (existsSync('/usr/bin/dnf')) return `sudo dnf install -y ${names('other')}`;
  if (existsSync('/sbin/apk')) return 'apk add build-base cmake linux-headers';
  return `install ${names('other')} with your package manager`;
}

const mayUseApt = () => process.getuid?.() === 0 && existsSync('/usr/bin/apt-get');

function installWithApt(missing) {
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const packages = missing.map((tool) => tool.apt);
  step('Updating the package lists of apt', 'apt-get', ['update', '-q'], { env });
  step(
    `Installing ${packages.join(', ')} with apt`,
    'apt-get',
    ['install', '-y', '-q', '--no-install-recommends', ...packages],
    { env },
  );
}

/** Makes sure that the addon can be built here, or throws a StepError that says what to install and how. */
export function ensureToolchain() {
  let missing = TOOLS.filter((tool) => !tool.present());
  if (missing.length > 0 && mayUseApt()) {
    installWithApt(missing);
    missing = missing.filter((tool) => !tool.present());
  }
  if (missing.length === 0) return;
  const names = missing.map((tool) => tool.what).join(', ');
  throw new StepError(
    `The native addon needs ${names}. Install with:\n  ${installCommand(missing)}\nand run the same command again.`,
  );
}
