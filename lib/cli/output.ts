// What the command line prints and how it ends: answers on stdout, everything else on stderr, one line per error.

import { isQFormerError } from '../errors.js';
import type { GenerationResult } from '../generation.js';

/** Ends quietly when the reader of stdout goes away, as in `qformer caption *.jpg | head -1`. */
export function quietOnBrokenPipe(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });
}

/** The text without line breaks. */
export const oneLine = (text: string): string => text.trim().replace(/\s*\n\s*/g, ' ');

/** Prints `error CODE: message` and sets the exit code: 130 after an interrupt, else 1. */
export function fail(error: unknown): void {
  if (interrupted.signal.aborted) {
    process.exitCode = 130;
    return;
  }
  const code = isQFormerError(error) ? error.code : 'INTERNAL';
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`error ${code}: ${oneLine(message)}\n`);
  process.exitCode = 1;
}

const interrupted = new AbortController();

/** Aborts on the first SIGINT or SIGTERM; a second one ends the process at once. */
export function interruptSignal(): AbortSignal {
  for (const name of ['SIGINT', 'SIGTERM'] as const) {
    process.on(name, () => {
      if (interrupted.signal.aborted) process.exit(130);
      interrupted.abort();
    });
  }
  return interrupted.signal;
}

/** Prints one result as one line of JSON; `about` says what it is the result of. */
export function printJson(about: Record<string, unknown>, result: GenerationResult): void {
  const { text, tokenIds, finishReason, usage, timings, beams, seed } = result;
  process.stdout.write(`${JSON.stringify({ ...about, text, tokenIds, finishReason, usage, timings, beams, seed })}\n`);
}

/** Milliseconds for people: `0.4 ms`, `12 ms`, `3.1 s`. */
export function duration(ms: number): string {
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** Bytes for people, in powers of 1024: `15.2 MiB`. */
export function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) [count, unit] = [count / 1024, unit + 1];
  return `${unit === 0 ? count : count.toFixed(1)} ${units[unit]}`;
}
