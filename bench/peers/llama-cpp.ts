// node-llama-cpp as a contestant: its prebuilt library for this CPU, its JavaScript API, as a user would call it. argv: the
// folder it is installed in.

import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pathToFileURL } from 'node:url';
import type { Job, Prepared } from './protocol.js';
import { promptIds, serve } from './serve.js';

const CONTEXT = 1024;
const BATCH = 512;

/** What is used of node-llama-cpp, which is not a dependency and so has no types here. */
interface Sequence {
  clearHistory(): Promise<void>;
  evaluate(tokens: number[], options: { temperature: number; yieldEogTokens: boolean }): AsyncGenerator<number>;
}
interface Context {
  getSequence(): Sequence;
}
interface LlamaModel {
  createContext(options: object): Promise<Context>;
  dispose(): Promise<void>;
}
interface NodeLlamaCpp {
  getLlama(options: object): Promise<{ loadModel(options: object): Promise<LlamaModel> }>;
}

async function prepare(job: Job): Promise<Prepared> {
  if (job.kind !== 'decode' && job.kind !== 'prefill') throw new Error(`no ${job.kind}`);
  const require = createRequire(join(process.argv[2]!, 'package.json'));
  const { getLlama } = (await import(pathToFileURL(require.resolve('node-llama-cpp')).href)) as NodeLlamaCpp;
  const llama = await getLlama({ gpu: false, build: 'never', maxThreads: job.threads, logLevel: 'error' });
  const model = await llama.loadModel({ modelPath: job.model });
  const context = await model.createContext({
    contextSize: CONTEXT,
    batchSize: BATCH,
    threads: job.threads,
    sequences: 1,
  });
  const sequence = context.getSequence();
  let salt = 0;
  const time = async (prompt: number, tokens: number) => {
    await sequence.clearHistory();
    const ids = promptIds(prompt, salt++);
    const begin = performance.now();
    let first: number | undefined;
    let left = tokens;
    for await (const _ of sequence.evaluate(ids, { temperature: 0, yieldEogTokens: true })) {
      first ??= performance.now();
      if (--left < 0) break;
    }
    return { firstMs: (first ?? NaN) - begin, restMs: performance.now() - (first ?? NaN) };
  };
  return {
    note: variant(),
    run: async () =>
      job.kind === 'decode' ? (await time(job.prompt, job.tokens)).restMs : (await time(job.tokens, 0)).firstMs,
    release: () => model.dispose(),
  };
}

/** Which of its builds llama.cpp has chosen: the library that is mapped. */
function variant(): string {
  const mapped = /libggml-cpu-(\w+)\.so/.exec(readFileSync('/proc/self/maps', 'utf8'))?.[1];
  return mapped === undefined ? '' : `${mapped} build`;
}

void serve(prepare);
