// A server's life: many requests at once on one model, some of them cancelled halfway, some of them wrong.

import type { Model } from '../../lib/index.js';
import { readMemory, type Reading } from './memory.js';
import { startBadRequest, startRequest } from './requests.js';

const AT_ONCE = 24;

/** What happened to the requests. */
export interface Traffic {
  finished: number;
  cancelled: number;
  refused: number;
  tokens: number;
  /** Tensors of the engine at each reading, when nothing ran. */
  liveTensors: number[];
  /** Anything that went another way than it should. */
  wrong: string[];
}

/** Requests number `first` to `first + count`; a reading of memory, with the model idle, before and every `every` of them. */
export async function soakTraffic(
  model: Model,
  first: number,
  count: number,
  every: number,
  report: (reading: Reading) => void,
): Promise<Traffic> {
  const traffic: Traffic = { finished: 0, cancelled: 0, refused: 0, tokens: 0, liveTensors: [], wrong: [] };
  report(await readMemory(0));
  for (let start = first; start < first + count; start += every) {
    const end = Math.min(first + count, start + every);
    let next = start;
    const lane = async (): Promise<void> => {
      while (next < end) await oneRequest(model, next++, traffic);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, lane));
    const stats = await model.stats();
    traffic.liveTensors.push(stats.liveTensors);
    if (stats.running + stats.waiting > 0)
      traffic.wrong.push(`${stats.running + stats.waiting} requests left at ${end}`);
    report(await readMemory(end - first));
  }
  return traffic;
}

async function oneRequest(model: Model, i: number, traffic: Traffic): Promise<void> {
  try {
    if (i % 17 === 3) await leaveLoop(model, i, traffic);
    else if (i % 19 === 7) await abort(model, i, traffic);
    else if (i % 13 === 5) await refuse(model, i, traffic);
    else {
      const { tokenIds } = await startRequest(model, i);
      traffic.finished++;
      traffic.tokens += tokenIds.length;
    }
  } catch (error) {
    traffic.wrong.push(`request ${i}: ${String(error)}`);
  }
}

async function leaveLoop(model: Model, i: number, traffic: Traffic): Promise<void> {
  const pieces = 1 + (i % 4);
  let seen = 0;
  for await (const { tokenIds } of startRequest(model, i, { ignoreEos: true, maxNewTokens: 60 })) {
    traffic.tokens += tokenIds.length;
    if (++seen >= pieces) break;
  }
  traffic.cancelled++;
}

async function abort(model: Model, i: number, traffic: Traffic): Promise<void> {
  const controller = new AbortController();
  const generation = startRequest(model, i, { ignoreEos: true, maxNewTokens: 60, signal: controller.signal });
  setTimeout(() => controller.abort(), i % 40);
  const code = await generation.then(
    () => 'finished',
    (error: unknown) => (error as { code?: string }).code,
  );
  if (code === 'ABORTED' || code === 'finished') traffic.cancelled++;
  else traffic.wrong.push(`request ${i}: aborted, but ${code}`);
}

async function refuse(model: Model, i: number, traffic: Traffic): Promise<void> {
  const { run, code } = startBadRequest(model, i);
  let found: string | undefined = 'no error';
  try {
    await run();
  } catch (error) {
    found = (error as { code?: string }).code;
  }
  if (found === code) traffic.refused++;
  else traffic.wrong.push(`request ${i}: should be refused with ${code}, got ${found}`);
}
