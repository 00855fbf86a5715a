// Start-up: what a user waits for before anything is computed. Each figure is the time of whole processes.

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { packageRoot } from '../lib/package-root.js';
import { summarise } from './measure.js';
import type { Options } from './options.js';
import type { Row } from './row.js';

/** Measures an empty Node, the import of the tensor API with its addon, the import of the package, and the CLI. */
export function runStart(options: Options, threads: number, send: (row: Row) => void): void {
  const dist = join(packageRoot(), 'dist');
  const load = (file: string, then = '') => ['--input-type=module', '-e', `${importOf(join(dist, file))};${then}`];
  const commands: [name: string, file: string | undefined, args: string[]][] = [
    ['node, an empty program', undefined, ['-e', '0']],
    ['import qformer/tensor, addon ready', 'tensor.js', load('tensor.js', 'api.devices()')],
    ['import qformer', 'index.js', load('index.js')],
    ['qformer --version', 'cli.js', [join(dist, 'cli.js'), '--version']],
  ];
  for (const [name, file, args] of commands) {
    const row: Row = { group: 'start', name, threads };
    if (file !== undefined && !existsSync(join(dist, file))) row.error = `dist/${file} is not built`;
    else timeProcess(row, args, options.smoke ? 3 : 15);
    send(row);
  }
}

function importOf(path: string): string {
  return `const api = await import(${JSON.stringify(path)})`;
}

function timeProcess(row: Row, args: string[], runs: number): void {
  const samples: number[] = [];
  for (let i = 0; i <= runs; i++) {
    const start = performance.now();
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    // the first run fills the page cache
    if (i > 0) samples.push(performance.now() - start);
    if (status !== 0) row.error = stderr.trim().split('\n').pop() ?? `exit status ${status}`;
  }
  row.timing = summarise(samples);
}
