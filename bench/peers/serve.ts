// The contestant's side of the protocol, for those that run in Node.

import { createWriteStream } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import type { Answer, Job, Prepared, Request } from './protocol.js';

/** Answers requests until stdin ends. */
export async function serve(prepare: (job: Job) => Promise<Prepared>): Promise<void> {
  const answers = createWriteStream('', { fd: 3 });
  let prepared: Prepared | undefined;
  for await (const line of createInterface({ input: process.stdin })) {
    let answer: Answer = {};
    try {
      const request = JSON.parse(line) as Request;
      if ('prepare' in request) {
        prepared = await prepare(request.prepare);
        await prepared.run();
        answer = { note: prepared.note, bytes: prepared.bytes };
      } else if ('turn' in request) answer = { ms: await takeTurn(prepared!, request.turn) };
      else {
        await prepared?.release();
        prepared = undefined;
      }
    } catch (error) {
      answer = { error: error instanceof Error ? error.message : String(error) };
    }
    answers.write(`${JSON.stringify(answer)}\n`);
  }
  // whatever a library left running must not keep the process
  process.exit();
}

async function takeTurn(prepared: Prepared, turn: number): Promise<number[]> {
  const ms: number[] = [];
  const end = performance.now() + turn;
  do ms.push(await prepared.run());
  while (performance.now() < end);
  return ms;
}

/** A `run` of protocol.ts that is timed as a whole. */
export function timed(run: () => unknown): () => number {
  return () => {
    const start = performance.now();
    run();
    return performance.now() - start;
  };
}

/** The same for a run that is awaited. */
export function timedAsync(run: () => Promise<unknown>): () => Promise<number> {
  return async () => {
    const start = performance.now();
    await run();
    return performance.now() - start;
  };
}

/** A prompt of `length` ids of a vocabulary that all contestants share; another one with each `salt`. */
export function promptIds(length: number, salt: number): number[] {
  return Array.from({ length }, (_, i) => (i === 0 ? 1 : 300 + ((i * 7 + salt * 13) % 2000)));
}
