// Which GPU library is opened, and what is said when none can be: with drivers and libraries of the test's own making, in
// processes of their own, because a process looks once. No GPU and no CUDA toolkit is needed.

import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..');
const support = join(root, 'test', 'support', 'native');
let folder: string;
let addons = 0;

/** Compiles a shared library; `c++` is what the bootstrap made sure of. */
function compile(source: string, target: string, flags: string[] = []): void {
  mkdirSync(dirname(target), { recursive: true });
  const common = ['-std=c++17', '-shared', '-fPIC', '-O1', '-I', join(root, 'csrc')];
  execFileSync(process.env['CXX'] ?? 'c++', [...common, ...flags, join(support, source), '-o', target]);
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'qformer-backends-'));
  compile('fake_driver.cpp', join(folder, 'driver', 'libcuda.so.1'), ['-Wl,-soname,libcuda.so.1']);
  // What the loader finds first and cannot open: as good as no driver, also on a machine that has one.
  mkdirSync(join(folder, 'no-driver'));
  writeFileSync(join(folder, 'no-driver', 'libcuda.so.1'), '');
  for (const major of [11, 12, 13]) {
    compile('fake_backend.cpp', join(folder, `libqformer_cuda${major}.so`), [`-DFAKE_MAJOR=${major}`]);
  }
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Answer {
  before: { name: string }[];
  devices: { name: string; device: string }[];
  unused: { device: string; reason: string }[];
  missing: string;
}

const question = `
  const native = require(process.argv[1]);
  const answer = { before: native.listDevices(0) };
  try { native.create([1], 0, process.argv[2], 0); } catch (error) { answer.missing = error.message; }
  if (process.argv[2] !== 'cpu') Object.assign(answer, { devices: native.listDevices(1), unused: native.listUnusedDevices() });
  console.log(JSON.stringify(answer));`;

/** A folder with the addon and the GPU libraries of these CUDA majors beside it. */
function install(majors: readonly number[]): string {
  const home = join(folder, `install-${addons++}`, 'node_modules', 'qformer');
  mkdirSync(home, { recursive: true });
  copyFileSync(join(root, 'build', 'Release', 'qformer.node'), join(home, 'qformer.node'));
  for (const major of majors) {
    symlinkSync(join(folder, `libqformer_cuda${major}.so`), join(home, `libqformer_cuda${major}.so`));
  }
  return home;
}

/** Asks the addon of `home` for `device` in a process of its own, under a driver of that version. */
function ask(home: string, version: number | undefined, env: Record<string, string> = {}, device = 'nothing'): Answer {
  const driver = join(folder, version === undefined ? 'no-driver' : 'driver');
  const stdout = execFileSync(process.execPath, ['-e', question, join(home, 'qformer.node'), device], {
    encoding: 'utf8',
    env: { LD_LIBRARY_PATH: driver, FAKE_CUDA_VERSION: String(version ?? 0), ...env },
  });
  return JSON.parse(stdout) as Answer;
}

const reasonOf = (answer: Answer): string | undefined => answer.unused.find(({ device }) => device === 'cuda')?.reason;

describe.runIf(process.platform === 'linux')('the CUDA library', () => {
  it('is not looked for, nor the driver, when only the CPU is used', () => {
    const loaded = join(folder, 'loaded');
    expect(ask(install([13]), 13000, { FAKE_CUDA_LOADED: loaded }, 'cpu').before).toMatchObject([{ name: 'cpu' }]);
    expect(existsSync(loaded)).toBe(false);
    ask(install([13]), 13000, { FAKE_CUDA_LOADED: loaded });
    expect(existsSync(loaded)).toBe(true);
  });

  it('is the newest that the driver accepts', () => {
    const all = install([11, 12, 13]);
    const chosen = (version: number, home = all) => ask(home, version).devices.map(({ device }) => device);
    const cpu = expect.any(String) as string;
    expect(chosen(13000)).toEqual([cpu, 'GPU 0 of library 13']);
    expect(chosen(14010)).toEqual([cpu, 'GPU 0 of library 13']);
    expect(chosen(12040)).toEqual([cpu, 'GPU 0 of library 12']);
    expect(chosen(11080)).toEqual([cpu, 'GPU 0 of library 11']);
    expect(chosen(13000, install([11]))).toEqual([cpu, 'GPU 0 of library 11']);
  });

  it('is found in its npm package above the addon', () => {
    const home = install([]);
    const installed = join(dirname(home), '@qformer', `cuda12-linux-${process.arch === 'x64' ? 'x64' : 'arm64'}`);
    mkdirSync(installed, { recursive: true });
    copyFileSync(join(folder, 'libqformer_cuda12.so'), join(installed, 'libqformer_cuda12.so'));
    expect(ask(home, 12040).devices[1]).toMatchObject({ name: 'cuda', device: 'GPU 0 of library 12' });
  });

  it('gives one device the name cuda and several a number each', () => {
    const home = install([13]);
    const names = (count: string) => ask(home, 13000, { FAKE_DEVICES: count }).devices.map(({ name }) => name);
    expect(names('1')).toEqual(['cpu', 'cuda']);
    expect(names('2')).toEqual(['cpu', 'cuda:0', 'cuda:1']);
  });
});

describe.runIf(process.platform === 'linux')('the reason why no GPU is used', () => {
  it('says that there is no driver, and everything else works', () => {
    const answer = ask(install([13]), undefined);
    expect(reasonOf(answer)).toBe('no NVIDIA driver is installed (libcuda.so.1 is not found)');
    expect(answer.devices).toMatchObject([{ name: 'cpu' }]);
  });

  it('names the version found and the one needed when the driver is too old', () => {
    expect(reasonOf(ask(install([11, 12, 13]), 10020))).toBe(
      'the NVIDIA driver supports CUDA 10.2, needed is CUDA 11.0 or newer: update the driver',
    );
    const home = install([13]);
    expect(reasonOf(ask(home, 12040))).toMatch(
      /^the NVIDIA driver supports CUDA 12\.4, but libqformer_cuda13\.so needs CUDA 13\.0 or newer: update the driver, or run 'npm install @qformer\/cuda12-linux-\w+'$/,
    );
  });

  it('gives the command that installs a missing library', () => {
    const home = install([]);
    for (const [version, text, major] of [
      [11080, '11.8', 11],
      [12040, '12.4', 12],
      [13000, '13.0', 13],
    ] as const) {
      expect(reasonOf(ask(home, version))).toMatch(
        new RegExp(
          `^the NVIDIA driver supports CUDA ${text}, but no library for CUDA ${major} is installed: run 'npm install @qformer/cuda${major}-linux-\\w+'$`,
        ),
      );
    }
  });

  it('passes on what the driver says when it does not start', () => {
    const home = install([13]);
    expect(reasonOf(ask(home, 13000, { FAKE_CUDA_INIT: '100' }))).toBe('the NVIDIA driver (CUDA 13.0) finds no GPU');
    expect(reasonOf(ask(home, 13000, { FAKE_CUDA_INIT: '3' }))).toBe(
      'the NVIDIA driver (CUDA 13.0) does not start: system not yet initialized (3)',
    );
  });

  it('says that the architecture is not covered, or that the library is of another version', () => {
    const home = install([13]);
    expect(reasonOf(ask(home, 13000, { FAKE_DEVICES: '0' }))).toBe(
      'Old GPU has compute capability 6.1, needed 7.5 or newer',
    );
    expect(reasonOf(ask(home, 13000, { FAKE_ABI: '1' }))).toMatch(
      /^libqformer_cuda13\.so belongs to another version of qformer \(this one needs backend ABI \d+\)/,
    );
  });

  it('is part of the error for a device that is asked for by name', () => {
    expect(ask(install([]), undefined, {}, 'cuda').missing).toBe(
      "no device 'cuda' (found: cpu); cuda: no NVIDIA driver is installed (libcuda.so.1 is not found)",
    );
  });
});

describe.runIf(process.platform === 'linux')('QFORMER_BACKENDS', () => {
  it('opens further libraries and says which of them cannot be', () => {
    const named = `${join(folder, 'libqformer_cuda12.so')}:${join(folder, 'missing.so')}`;
    const answer = ask(install([]), undefined, { QFORMER_BACKENDS: named });
    expect(answer.devices.map(({ device }) => device)).toContain('GPU 0 of library 12');
    expect(answer.unused.find(({ device }) => device.endsWith('missing.so'))?.reason).toMatch(
      /^QFORMER_BACKENDS: .*missing\.so/,
    );
  });
});
