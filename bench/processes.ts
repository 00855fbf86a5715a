// Whole processes by the clock: what somebody waits for who types a command.

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { packageRoot } from '../lib/package-root.js';

/** A program that does nothing, to compare with. */
export const EMPTY_PROGRAM = join(packageRoot(), 'bench', 'empty.cjs');

/** The file that runs when somebody types `qformer`. */
export function qformerCommand(): string {
  const manifest = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as {
    bin: { qformer: string };
  };
  return join(packageRoot(), manifest.bin.qformer);
}

/** Times in ms, one of each round, and what a run that failed said. */
export interface ProcessTimes {
  samples: number[];
  error?: string;
}

/** Runs Node with each list of arguments in turn, without a shell, `rounds` times after one that fills the page cache. */
export function timeProcesses(commands: readonly (readonly string[])[], rounds: number): ProcessTimes[] {
  const times = commands.map((): ProcessTimes => ({ samples: [] }));
  for (let round = 0; round <= rounds; round++) {
    commands.forEach((args, i) => {
      const begin = performance.now();
      const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
      if (round > 0) times[i]!.samples.push(performance.now() - begin);
      if (status !== 0) times[i]!.error = stderr.trim().split('\n').pop() || `exit status ${status}`;
    });
  }
  return times;
}
