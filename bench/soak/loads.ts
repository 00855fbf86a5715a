// Loading and disposing again and again; now and then a model answers first, and now and then a load is aborted midway.

import type { Api } from '../model/package.js';
import { readMemory, type Reading } from './memory.js';
import { startRequest } from './requests.js';

/** `cycles` loads; a reading every `every` of them. */
export async function soakLoads(
  api: Api,
  dir: string,
  cycles: number,
  every: number,
  report: (reading: Reading) => void,
): Promise<void> {
  report(await readMemory(0));
  for (let i = 1; i <= cycles; i++) {
    if (i % 10 === 5) await abortedLoad(api, dir, (i / 10) % 12);
    else await cycle(api, dir, i);
    if (i % every === 0) report(await readMemory(i));
  }
}

async function cycle({ loadModel }: Api, dir: string, i: number): Promise<void> {
  const model = await loadModel(dir);
  try {
    if (i % 7 === 0) await startRequest(model, i);
    // ends while a request runs: it must reject, and nothing may stay behind
    if (i % 11 === 0) startRequest(model, i).catch(() => undefined);
  } finally {
    await model.dispose();
  }
}

async function abortedLoad({ loadModel }: Api, dir: string, afterMs: number): Promise<void> {
  const signal = AbortSignal.timeout(Math.ceil(afterMs * 8));
  try {
    await (await loadModel(dir, { signal })).dispose();
  } catch (error) {
    if ((error as { code?: string }).code !== 'ABORTED') throw error;
  }
}
