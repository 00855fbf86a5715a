// `npm run soak`: does anything leak or depend on company? Loads and disposes a model many times, sends it thousands of mixed
// requests, and compares concurrent answers with lonely ones. Prints memory as it goes; exit code 1 where something is wrong.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { packageRoot } from '../../lib/package-root.js';
import { describeMachine } from '../machine.js';
import { DEMONSTRATION_MODEL, importPackage } from '../model/package.js';
import { compareConcurrent } from './concurrent.js';
import { soakLoads } from './loads.js';
import { describeFlatness, judgeFlatness, type Reading } from './memory.js';
import { soakTraffic } from './traffic.js';

const USAGE = `npm run soak -- [options]
  --loads N        load/dispose cycles (default 1000)
  --warm-up N      requests before those, until every cache is at its bound (default 6000)
  --requests N     requests on one model, over which memory is judged (default 10000)
  --concurrent N   requests compared with one-by-one answers (default 64)
  --readings N     memory readings of each part (default 40)
  --model DIR      checkpoint folder (default: the demonstration model)`;

interface Options {
  loads: number;
  warmUp: number;
  requests: number;
  concurrent: number;
  readings: number;
  model: string;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      loads: { type: 'string', default: '1000' },
      'warm-up': { type: 'string', default: '6000' },
      requests: { type: 'string', default: '10000' },
      concurrent: { type: 'string', default: '64' },
      readings: { type: 'string', default: '40' },
      model: { type: 'string', default: DEMONSTRATION_MODEL },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) return console.log(USAGE);
  const [loads, warmUp, requests, concurrent, readings] = [
    values.loads,
    values['warm-up'],
    values.requests,
    values.concurrent,
    values.readings,
  ].map(count) as [number, number, number, number, number];
  await soak({ loads, warmUp, requests, concurrent, readings, model: values.model });
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value <= 1e7) return value;
  throw new Error(`counts must be whole numbers from 0 to 10,000,000, got '${text}'`);
}

async function soak(options: Options): Promise<void> {
  if (globalThis.gc === undefined) console.log('note: without --expose-gc, readings include garbage');
  const started = Date.now();
  const problems: string[] = [];
  const result = {
    machine: describeMachine(),
    options: { ...options, model: relative(packageRoot(), options.model) },
    concurrent: await concurrentPart(options, problems),
    traffic: await trafficPart(options, problems),
    loads: await loadsPart(options, problems),
    problems,
    seconds: (Date.now() - started) / 1000,
  };
  const folder = join(packageRoot(), 'bench', 'results');
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${result.machine.date.slice(0, 16).replace(':', '')}-soak.json`);
  writeFileSync(file, `${JSON.stringify(result, undefined, 1)}\n`);
  for (const problem of problems.slice(0, 20)) console.log(`WRONG: ${problem}`);
  console.log(`${problems.length} problems in ${result.seconds.toFixed(0)} s; written: ${file}`);
  if (problems.length > 0) process.exitCode = 1;
}

async function concurrentPart({ concurrent, model: dir }: Options, problems: string[]): Promise<unknown> {
  if (concurrent === 0) return undefined;
  const { loadModel } = await importPackage();
  const alone = await loadModel(dir, { maxBatchSize: 1, prefixCache: false });
  const together = await loadModel(dir, { maxBatchSize: 64 });
  try {
    const different = await compareConcurrent(alone, together, concurrent);
    problems.push(...different);
    console.log(`${concurrent} requests at once: ${concurrent - different.length} answers equal those of one by one`);
    return { requests: concurrent, different };
  } finally {
    await Promise.all([alone.dispose(), together.dispose()]);
  }
}

// The KV pool takes memory from the system block by block, as prompts that nobody has asked before fill it. Here it is
// small, so that the warm-up fills it and what is judged is growth for which there is no bound.
const KV_CACHE_TOKENS = 2048;

async function trafficPart(options: Options, problems: string[]): Promise<unknown> {
  const { warmUp, requests, readings, model: dir } = options;
  if (requests === 0) return undefined;
  const { loadModel } = await importPackage();
  const model = await loadModel(dir, { kvCacheTokens: KV_CACHE_TOKENS });
  const warming = new ReadingLog('requests to warm up');
  const log = new ReadingLog('requests');
  const every = Math.ceil(requests / readings);
  try {
    const before = await soakTraffic(model, 0, warmUp, every * 4, warming.add);
    const { blocksEvicted, blocksTotal, imageCacheBytes } = await model.stats();
    console.log(
      `after the warm-up: ${blocksEvicted} of the pool's ${blocksTotal} KV blocks given up for new ones, image cache ${imageCacheBytes} bytes`,
    );
    if (blocksEvicted === 0) problems.push('the warm-up did not fill the KV pool: give it more requests');
    const traffic = await soakTraffic(model, warmUp, requests, every, log.add);
    problems.push(...before.wrong, ...traffic.wrong);
    const [low, high] = [Math.min(...traffic.liveTensors), Math.max(...traffic.liveTensors)];
    const { finished, cancelled, refused, tokens } = traffic;
    console.log(
      `${finished} finished, ${cancelled} cancelled, ${refused} refused, ${tokens} tokens; idle tensors ${low}–${high}`,
    );
    const filled = { blocksEvicted, blocksTotal, imageCacheBytes, readings: warming.readings };
    return { warmUp: filled, ...traffic, readings: log.readings, flatness: log.judge(problems) };
  } finally {
    await model.dispose();
  }
}

/** Part of the load/dispose cycles that may still grow. */
const LOADS_WARM_UP = 0.25;

async function loadsPart({ loads, readings, model: dir }: Options, problems: string[]): Promise<unknown> {
  if (loads === 0) return undefined;
  const log = new ReadingLog('load/dispose cycles');
  await soakLoads(await importPackage(), dir, loads, Math.ceil(loads / readings), log.add);
  return { readings: log.readings, flatness: log.judge(problems, LOADS_WARM_UP) };
}

class ReadingLog {
  readonly readings: Reading[] = [];

  constructor(private readonly of: string) {}

  readonly add = (reading: Reading): void => {
    this.readings.push(reading);
    const [rss, heap, external] = [reading.rss, reading.heap, reading.external].map((mib) => mib.toFixed(1));
    console.log(`${String(reading.done).padStart(6)} ${this.of}: RSS ${rss} MiB, heap ${heap}, external ${external}`);
  };

  judge(problems: string[], warmUp = 0): unknown {
    const flatness = judgeFlatness(this.readings, warmUp);
    console.log(`${this.of}: ${describeFlatness(flatness)}`);
    if (!flatness.flat) problems.push(`memory over ${this.of}: ${describeFlatness(flatness)}`);
    return flatness;
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? (error.stack ?? error.message) : error);
  process.exitCode = 1;
});
