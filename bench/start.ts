// Start-up: what a user waits for before anything is computed. Each figure is the time of whole processes.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../lib/package-root.js';
import { summarise } from './measure.js';
import type { Options } from './options.js';
import { EMPTY_PROGRAM, qformerCommand, timeProcesses } from './processes.js';
import type { Row } from './row.js';

/** Measures an empty program, the import of the tensor API with its addon, the import of the package, and the CLI. */
export function runStart(options: Options, threads: number, send: (row: Row) => void): void {
  const dist = (file: string) => join(packageRoot(), 'dist', file);
  const load = (file: string, then = '') => ['--input-type=module', '-e', `${importOf(file)};${then}`];
  const programs: [name: string, file: string, args: string[]][] = [
    ['node, an empty program', EMPTY_PROGRAM, [EMPTY_PROGRAM]],
    ['import qformer/tensor, addon ready', dist('tensor.js'), load(dist('tensor.js'), 'api.devices()')],
    ['import qformer', dist('index.js'), load(dist('index.js'))],
    ['qformer --version', qformerCommand(), [qformerCommand(), '--version']],
  ];
  const built = programs.filter(([, file]) => existsSync(file));
  const times = timeProcesses(
    built.map(([, , args]) => args),
    options.smoke ? 3 : 15,
  );
  for (const program of programs) {
    const [name, file] = program;
    const { samples, error } = times[built.indexOf(program)] ?? { samples: undefined, error: `${file} is not built` };
    send({ group: 'start', name, threads, timing: samples && summarise(samples), error });
  }
}

function importOf(path: string): string {
  return `const api = await import(${JSON.stringify(path)})`;
}
