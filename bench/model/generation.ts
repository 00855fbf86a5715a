// What a user of the package sees: loading, time per image, prefill and decode rates, time to first token, and how free the
// event loop stays meanwhile. Everything goes through loadModel and its worker.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { OtherLoad, summarise } from '../measure.js';
import type { Options } from '../options.js';
import type { Figure, Row } from '../row.js';
import { importPackage, SAMPLES, type GenerationResult, type Model, type ModelChoice } from './package.js';

const BATCH = 16;
const DELAY_RESOLUTION_MS = 1;

/** Measures a model through the public API. */
export async function runGeneration(
  { dir, dtype, group }: ModelChoice,
  options: Options,
  threads: number,
  send: (row: Row) => void,
): Promise<void> {
  const { loadModel } = await importPackage();
  const runs = options.smoke ? 2 : 7;
  const sendSamples = (name: string, samples: number[], others?: number) =>
    send({ group, name, threads, timing: summarise(samples, others) });

  const loads: number[] = [];
  for (let i = 0; i <= runs; i++) {
    const start = performance.now();
    const model = await loadModel(dir, { dtype, threads });
    if (i > 0) loads.push(performance.now() - start);
    await model.dispose();
  }
  sendSamples('loadModel, files in the page cache', loads);

  // The prefix cache would answer repeated prompts from memory.
  const model = await loadModel(dir, { dtype, threads, maxBatchSize: BATCH, prefixCache: false });
  try {
    const bench = new GenerationBench(model, runs, options.smoke ? 24 : 96);
    await bench.answer();
    const load = new OtherLoad();
    const images = await bench.repeat(() => bench.answer());
    const others = load.cores();
    sendSamples(
      'image in the worker: resize, ViT, Q-Former',
      images.map((r) => r.timings.imageMs),
      others,
    );
    sendSamples(
      'time to first token, image and question',
      images.map((r) => r.timings.timeToFirstTokenMs),
      others,
    );
    await bench.figures(group, threads, send);
  } finally {
    await model.dispose();
  }
}

class GenerationBench {
  #image = decodedSample();
  #changed = 0;

  constructor(
    private readonly model: Model,
    private readonly runs: number,
    private readonly newTokens: number,
  ) {}

  async repeat<T>(run: () => Promise<T>): Promise<T[]> {
    const results: T[] = [];
    for (let i = 0; i < this.runs; i++) results.push(await run());
    return results;
  }

  /** One question about a picture that no cache knows. */
  async answer(): Promise<GenerationResult> {
    const { data, width, height } = await this.#image;
    const pixels = Uint8Array.from(data);
    pixels[this.#changed++ % pixels.length]! ^= 1 + (this.#changed >> 8);
    const image = { data: pixels, width, height, channels: 3 as const };
    return this.model.answer(image, 'What is at the top?', { maxNewTokens: 2, ignoreEos: true });
  }

  async figures(group: string, threads: number, send: (row: Row) => void): Promise<void> {
    const promptTokens = Math.min(this.newTokens < 32 ? 64 : 256, this.model.info.maxContext - this.newTokens - 32);
    const prefill = await this.repeat(() => this.#run(promptTokens, 1));
    const rates = prefill.map(({ usage, timings }) => (1000 * usage.promptTokens) / timings.prefillMs);
    const decode = await this.repeat(async () => (await this.#run(16, this.newTokens)).timings.tokensPerSecond);
    const watch = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS });
    watch.enable();
    const batched = await this.repeat(() => this.#batch());
    watch.disable();
    const row = (name: string, figures: Record<string, Figure>) => send({ group, name, threads, figures });
    row(`prefill, ${promptTokens} tokens`, { rate: spread(rates, 'tokens/s') });
    row(`decode, batch 1, ${this.newTokens} tokens after 16`, { rate: spread(decode, 'tokens/s') });
    row(`${BATCH} requests at once, ${this.newTokens} tokens each after 16`, { rate: spread(batched, 'tokens/s') });
    const delay = (ns: number): Figure => ({ value: Math.max(0, ns / 1e6 - DELAY_RESOLUTION_MS), unit: 'ms' });
    row(`event-loop delay of the main thread while ${BATCH} requests run`, {
      p50: delay(watch.percentile(50)),
      p99: delay(watch.percentile(99)),
      max: delay(watch.max),
    });
    row('memory', {
      'peak RSS': { value: process.resourceUsage().maxRSS / 1024, unit: 'MiB' },
      weights: { value: this.model.info.weightBytes / 2 ** 20, unit: 'MiB' },
      'KV cache': { value: this.model.info.kvCacheBytes / 2 ** 20, unit: 'MiB' },
    });
  }

  #run(promptTokens: number, maxNewTokens: number): Promise<GenerationResult> {
    const prompt = Array.from({ length: promptTokens }, (_, i) =>
      i === 0 ? 1 : 10 + ((i * 7 + this.#changed) % 2000),
    );
    this.#changed++;
    return Promise.resolve(this.model.generate(prompt, { maxNewTokens, ignoreEos: true }));
  }

  // tokens per second of all requests together, from the first submission to the last answer
  async #batch(): Promise<number> {
    const start = performance.now();
    const results = await Promise.all(Array.from({ length: BATCH }, () => this.#run(16, this.newTokens)));
    const tokens = results.reduce((all, { usage }) => all + usage.completionTokens, 0);
    return (1000 * tokens) / (performance.now() - start);
  }
}

async function decodedSample(): Promise<{ data: Uint8Array; width: number; height: number }> {
  const { loadImage } = await import('../../lib/io/image.js');
  return loadImage(readFileSync(join(SAMPLES, 'fox_noto.png')));
}

function spread(values: number[], unit: string): Figure {
  const { median, min, max } = summarise(values);
  return { value: median, unit, min, max };
}
