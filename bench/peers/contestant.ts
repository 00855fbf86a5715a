// A contestant's process, seen from the harness. It is pinned to the CPUs of its row and stopped (SIGSTOP) whenever it is not its
// turn: threads that a library lets spin between two calls cannot take time from the others, and no library needs settings
// that would handicap it within its turn.

import { spawn, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { pinned } from '../machine.js';
import type { Answer, Request } from './protocol.js';

const STDERR_KEPT = 4000;

// A stopped process would outlive the harness: it does not see that its stdin has ended.
const running = new Set<ChildProcess>();
process.once('exit', () => running.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

/** How to start a contestant. */
export interface Command {
  command: string;
  args: string[];
  env?: Record<string, string>;
}

export class ContestantProcess {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  #stderr = '';
  #ended: string | undefined;

  constructor({ command, args, env }: Command, threads: number) {
    const start = pinned(threads, command, args);
    const limits = { OMP_NUM_THREADS: String(threads), MKL_NUM_THREADS: String(threads) };
    this.#child = spawn(start.command, start.args, {
      env: { ...process.env, ...limits, ...env },
      stdio: ['pipe', 'ignore', 'pipe', 'pipe'],
    });
    running.add(this.#child);
    this.#child.stderr!.on('data', (text) => (this.#stderr = (this.#stderr + String(text)).slice(-STDERR_KEPT)));
    this.#child.on('error', (error) => (this.#ended = error.message));
    this.#child.on('exit', (code, signal) => {
      running.delete(this.#child);
      this.#ended = `ended with ${signal ?? `code ${code}`}`;
    });
    // a process that is gone says so by its exit
    this.#child.stdin!.on('error', () => {});
    this.#lines = createInterface({ input: this.#child.stdio[3] as Readable })[Symbol.asyncIterator]();
  }

  /** Of the process, which `OtherLoad` counts as ours. */
  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Lets the process answer `request`, and stops it again. Rejects with its reason, or with what it wrote when it died. */
  async ask(request: Request): Promise<Answer> {
    this.#child.kill('SIGCONT');
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`);
    const { value, done } = await this.#lines.next();
    this.#child.kill('SIGSTOP');
    if (done) throw new Error(`${this.#ended ?? 'ended'}: ${this.#stderr.trim().split('\n').slice(-3).join(' / ')}`);
    const answer = JSON.parse(value) as Answer;
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  }

  /** Most memory that the process had resident so far, in bytes, mapped files included; undefined where the system does not tell. */
  peakMemory(): number | undefined {
    if (process.platform !== 'linux') return undefined;
    const kilobytes = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${this.pid}/status`, 'utf8'))?.[1];
    return kilobytes === undefined ? undefined : 1024 * Number(kilobytes);
  }

  /** Lets a process that answers nothing run, or holds it (a busy neighbour). */
  signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.#child.kill(signal);
  }

  /** Ends the process, which frees everything it holds. */
  async end(): Promise<void> {
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null || this.#child.pid === undefined) return;
    const exited = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.kill('SIGKILL');
    await exited;
  }
}
