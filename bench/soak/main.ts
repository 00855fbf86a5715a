// `npm run soak`: does anything leak or depend on company? Loads and disposes a model many times, sends it thousands of mixed
// requests, and compares concurrent answers with lonely ones. Prints memory as it goes; exit code 1 where something is wrong.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
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
  --requests N     requests on one model (default 10000)
  --concurrent N   requests compared with one-by-one answers (default 64)
  --readings N     memory readings of each part (default 40)
  --model DIR      checkpoint folder (default: the demonstration model)`;

interface Options {
  loads: number;
  requests: number;
  concurrent: number;
  readings: number;
  model: string;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      loads: { type: 'string', default: '1000' },
      requests: { type: 'string', default: '10000' },
      concurrent: { type: 'string', default: '64' },
      readings: { type: 'string', default: '40' },
      model: { type: 'string', default: DEMONSTRATION_MODEL },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) return console.log(USAGE);
  const [loads, requests, concurrent, readings] = [
    values.loads,
    values.requests,
    values.concurrent,
    values.readings,
  ].map(count) as [number, number, number, number];
  await soak({ loads, requests, concurrent, readings, model: values.model });
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
    options,
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

async function trafficPart({ requests, readings, model: dir }: Options, problems: string[]): Promise<unknown> {
  if (requests === 0) return undefined;
  const { loadModel } = await importPackage();
  const model = await loadModel(dir);
  const log = new ReadingLog(`requests`);
  try {
    const traffic = await soakTraffic(model, requests, Math.ceil(requests / readings), log.add);
    problems.push(...traffic.wrong);
    const tensors = traffic.liveTensors.slice(Math.floor(traffic.liveTensors.length / 4));
    const [low, high] = [Math.min(...tensors), Math.max(...tensors)];
    const { finished, cancelled, refused, tokens } = traffic;
    console.log(
      `${finished} finished, ${cancelled} cancelled, ${refused} refused, ${tokens} tokens; idle tensors ${low}–${high}`,
    );
    return { ...traffic, readings: log.readings, flatness: log.judge(problems) };
  } finally {
    await model.dispose();
  }
}

async function loadsPart({ loads, readings, model: dir }: Options, problems: string[]): Promise<unknown> {
  if (loads === 0) return undefined;
  const log = new ReadingLog('load/dispose cycles');
  await soakLoads(await importPackage(), dir, loads, Math.ceil(loads / readings), log.add);
  return { readings: log.readings, flatness: log.judge(problems) };
}

class ReadingLog {
  readonly readings: Reading[] = [];

  constructor(private readonly of: string) {}

  readonly add = (reading: Reading): void => {
    this.readings.push(reading);
    const [rss, heap, external] = [reading.rss, reading.heap, reading.external].map((mib) => mib.toFixed(1));
    console.log(`${String(reading.done).padStart(6)} ${this.of}: RSS ${rss} MiB, heap ${heap}, external ${external}`);
  };

  judge(problems: string[]): unknown {
    const flatness = judgeFlatness(this.readings);
    console.log(`${this.of}: ${describeFlatness(flatness)}`);
    if (!flatness.flat) problems.push(`memory over ${this.of}: ${describeFlatness(flatness)}`);
    return flatness;
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? (error.stack ?? error.message) : error);
  process.exitCode = 1;
});
