// `npm run bench:large`: does a checkpoint of real size load and run on this machine? Random weights under the real names, in bf16
// and in shards, 16 GB on the disk while it runs. Prints times and resident memory beside the estimate, as JSON.

import { readFileSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../lib/package-root.js';
import { describeMachine } from '../machine.js';
import { importPackage } from '../model/package.js';
import { VICUNA_7B, writeSyntheticModel } from '../model/synthetic.js';

const SHARDS = 4;
const NEW_TOKENS = 6;
const DISK_BYTES = 20e9;

const { bavail, bsize } = statfsSync(tmpdir());
if (bavail * bsize < DISK_BYTES) throw new Error(`${tmpdir()} has less than ${DISK_BYTES / 1e9} GB free`);

/** A line of /proc/self/status, bytes. */
function status(name: string): number {
  const line = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(line?.[1] ?? 0) * 1024;
}

/** Resident memory: all, and what of it is not pages of the mapped files. */
const resident = (): object => ({ rss: status('VmRSS'), anonymous: status('RssAnon'), files: status('RssFile') });

async function timed<T>(run: () => T | Promise<T>): Promise<{ ms: number; value: T }> {
  const began = performance.now();
  const value = await run();
  return { ms: Math.round(performance.now() - began), value };
}

const root = packageRoot();
const machine = describeMachine();
const written = await timed(() =>
  writeSyntheticModel(join(root, 'models', 'emoji-vlm'), { config: VICUNA_7B, shards: SHARDS }),
);
const { dir, remove } = written.value;
try {
  const { estimateMemory, inspect, loadModel } = await importPackage();
  const { parameters, bytes, parts } = inspect(dir);
  const estimate = estimateMemory(dir);
  const loaded = await timed(() => loadModel(dir, { device: 'cpu' }));
  const model = loaded.value;
  const afterLoad = resident();
  const image = join(root, 'models', 'samples', 'fox_noto.png');
  const run = () => model.caption(image, { maxNewTokens: NEW_TOKENS, ignoreEos: true });
  const first = await timed(run);
  const again = await timed(run);
  const answers = [first, again].map(({ ms, value: { tokenIds, usage, timings } }) => ({
    ms,
    tokenIds,
    usage,
    timings,
  }));
  const memory = { afterLoad, atEnd: resident(), peakRss: status('VmHWM') };
  const checkpoint = { shards: SHARDS, parameters, bytes, parts };
  const { kvCacheTokens, kvCacheBytes, level, threads } = model.info;
  await model.dispose();
  const engine = { kvCacheTokens, kvCacheBytes, level, threads };
  const report = { machine, checkpoint, writeMs: written.ms, estimate, loadMs: loaded.ms, engine, answers, memory };
  console.log(JSON.stringify(report, null, 2));
} finally {
  remove();
}
