// The machine's side of a report: what it is, what it can do at best, and which CPUs a run may use.

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../lib/package-root.js';
import type { Peaks } from './row.js';

/** Header of a report. */
export interface Machine {
  cpu: string;
  cores: number;
  /** Bytes of memory. */
  memory: number;
  l3: number;
  kernel: string;
  node: string;
  compiler: string;
  commit: string;
  date: string;
  /** Load average of the last minute when the run began. */
  load: number;
}

/** Facts of this machine and clone. */
export function describeMachine(): Machine {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memory: totalmem(),
    l3: l3Bytes(),
    kernel: `${process.platform} ${release()}`,
    node: process.version,
    compiler: firstLine(compiler(), ['--version']),
    commit: commit(),
    date: new Date().toISOString(),
    load: loadavg()[0] ?? 0,
  };
}

/** Bytes of the last-level cache, 32 MiB where the system does not tell. */
export function l3Bytes(): number {
  const folder = '/sys/devices/system/cpu/cpu0/cache';
  if (!existsSync(folder)) return 32 * 2 ** 20;
  const sizes = readdirSync(folder)
    .filter((name) => name.startsWith('index'))
    .map((name) => parseInt(readFileSync(join(folder, name, 'size'), 'utf8'), 10) * 1024);
  return Math.max(32 * 2 ** 20, ...sizes);
}

/** The command and its arguments, confined to `threads` CPUs (the last ones: interrupts like the first) where possible. */
export function pinned(threads: number, command: string, args: string[]): { command: string; args: string[] } {
  const cores = cpus().length;
  if (threads >= cores || spawnSync('taskset', ['--version']).status !== 0) return { command, args };
  return { command: 'taskset', args: ['-c', `${cores - threads}-${cores - 1}`, command, ...args] };
}

/** Measures the limits with `threads` threads; compiles the program first. */
export function measurePeaks(threads: number, smoke: boolean): Peaks {
  const program = buildPeaks();
  const { command, args } = pinned(threads, program, smoke ? ['3', '128'] : ['15', '256']);
  return JSON.parse(execFileSync(command, args, { encoding: 'utf8' })) as Peaks;
}

/**
 * One limit right now, on `threads` CPUs or those this process may use: DRAM read bandwidth in GB/s, or multiply-adds in
 * GFLOP/s; undefined for bf16 where the CPU has no such instruction.
 */
export function measureLimit<L extends 'dram' | 'f32' | 'bf16'>(limit: L, threads?: number): Peaks[L] {
  const own = [limit === 'dram' ? '3' : '9', '128', limit];
  const program = buildPeaks();
  const { command, args } = threads === undefined ? { command: program, args: own } : pinned(threads, program, own);
  return (JSON.parse(execFileSync(command, args, { encoding: 'utf8' })) as Peaks)[limit];
}

function buildPeaks(): string {
  const source = join(packageRoot(), 'bench', 'native', 'peaks.cpp');
  const folder = join(packageRoot(), 'build-bench');
  const program = join(folder, 'peaks');
  if (existsSync(program) && statSync(program).mtimeMs > statSync(source).mtimeMs) return program;
  mkdirSync(folder, { recursive: true });
  const args = ['-O3', '-std=gnu++20', '-ffp-contract=fast', '-pthread', '-o', program, source];
  execFileSync(compiler(), args, { stdio: 'inherit' });
  return program;
}

function compiler(): string {
  return process.env['CXX'] ?? 'c++';
}

function firstLine(command: string, args: string[]): string {
  const { stdout } = spawnSync(command, args, { encoding: 'utf8', cwd: packageRoot() });
  return stdout?.split('\n', 1)[0]?.trim() || 'unknown';
}

function commit(): string {
  const changed = spawnSync('git', ['diff', '--quiet', 'HEAD'], { cwd: packageRoot() }).status === 1;
  return firstLine('git', ['rev-parse', '--short=12', 'HEAD']) + (changed ? ' with local changes' : '');
}
