// Runs the built command line in a process of its own.

import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { packageRoot } from '../../lib/package-root.js';

/** What a finished process left behind. */
export interface Finished {
  stdout: string;
  stderr: string;
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** How to run it: text for its standard input, whether that stays open, and what to do while it runs. */
export interface RunOptions {
  input?: string;
  keepOpen?: boolean;
  during?: (child: ChildProcess) => void;
}

/** Runs `node dist/cli.cjs ...args` in the package folder and waits for its end. */
export function qformer(
  args: readonly string[],
  { input = '', keepOpen = false, during }: RunOptions = {},
): Promise<Finished> {
  const child = spawn(process.execPath, [join(packageRoot(), 'dist', 'cli.cjs'), ...args], { cwd: packageRoot() });
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => (output[name] += text));
  }
  child.stdin.on('error', () => undefined).write(input);
  if (!keepOpen) child.stdin.end();
  during?.(child);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ ...output, code, signal }));
  });
}
