// Everything at once, on every fixture model that generates: other images and prompts, greedy answers, five beams under both length
// penalties, rules, other ends, samples and adapters. Each request must give what the reference gives for it, and where the
// reference has nothing what it gives alone, whatever else is in the batch. On the emulated GPU two of each kind; with checks one
// short request of each kind, in 16 bits, where adapters take passes of their own: what it gives alone.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EngineResult } from '../lib/engine/protocol.js';
import {
  loadLoras,
  loadT5Adapters,
  loraIds,
  loraRequests,
  T5_ADAPTERS,
  t5Requests,
  writeMadeAdapter,
} from './support/adapter-requests.js';
import { expectDevices, isChecked, isEmulated, loadedFor, runs } from './support/devices.js';
import { bytesOf, finishAll, fixturePath, idsGroup, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import {
  expectBeams,
  plainRequests,
  REFERENCE_MODELS,
  ruledRequests,
  withBeams,
} from './support/reference-requests.js';

expectDevices();

/** A request, and what the reference says about its result if it says anything. */
interface Mixed {
  name: string;
  request: IdsRequest;
  check?: (result: EngineResult) => void;
}

/** Two adapters of a model: the reference's where it has some. */
interface Adapters {
  names: [string, string];
  load: (loaded: LoadedEngine) => void;
  known: Mixed[];
}

const made = mkdtempSync(join(tmpdir(), 'qformer-everything-'));
afterAll(() => rmSync(made, { recursive: true, force: true }));

const hasIds = (name: string, request: IdsRequest, ids: number[]): Mixed => ({
  name,
  request,
  check: ({ tokenIds }) => expect(tokenIds, name).toEqual(ids),
});

async function adaptersOf(name: string, folders: LoadOptions): Promise<Adapters> {
  if (name === 'instructblip-vicuna-tiny') {
    const names: [string, string] = ['adapter_a_standard', 'adapter_d_vision'];
    const requests = await loraRequests();
    const known = [...names, undefined].flatMap((adapter) =>
      requests.map((request, i) => hasIds(`${adapter} r${i}`, { ...request, adapter }, loraIds(adapter, i))),
    );
    return { names, load: (loaded) => loadLoras(loaded, names), known };
  }
  if (name === 'instructblip-flant5-tiny') {
    const references = [...(await t5Requests(1)), ...(await t5Requests(3))];
    const known = references.map(({ request, ids, logits }) => hasIds(logits, request, ids));
    return { names: T5_ADAPTERS as [string, string], load: loadT5Adapters, known };
  }
  const names: [string, string] = ['first', 'second'];
  const dirs = names.map((adapter, seed) => {
    const { dir = fixturePath(name), languageModel } = folders;
    return writeMadeAdapter(join(made, name, adapter), dir, languageModel, seed + 1);
  });
  return { names, load: ({ adapters }) => names.forEach((each, i) => adapters.load(each, dirs[i]!)), known: [] };
}

/** All requests of a model, those with an answer of the reference first. */
async function mixedRequests(name: string, adapters: Adapters): Promise<Mixed[]> {
  const plain = await plainRequests(name);
  const beams = plain.flatMap(({ name: of, request, beams: { lp1, lpm1 } }): Mixed[] => [
    { name: `${of} beams 1`, request: withBeams(request, 1), check: (r) => expectBeams(r, lp1, of) },
    { name: `${of} beams −1`, request: withBeams(request, -1), check: (r) => expectBeams(r, lpm1, of) },
  ]);
  const greedy = [...plain, ...(await ruledRequests(name))].map((each) => hasIds(each.name, each.request, each.ids));
  const others = [undefined, ...adapters.names].flatMap((adapter, a): Mixed[] => {
    const [first, second] = [plain[a]!, plain.at(-1 - a)!];
    const sampling = { maxNewTokens: 11 + a, temperature: 0.7 + 0.2 * a, topK: 40 * a, topP: 0.95, seed: 5 + a };
    const sampled: Mixed = {
      name: `${adapter} sampled`,
      request: { ...first.request, adapter, params: { ...sampling, logprobs: 2 } },
    };
    if (adapter === undefined) return [sampled];
    const params = { maxNewTokens: 13, logprobs: 2 };
    return [
      sampled,
      { name: `${adapter} greedy`, request: { ...second.request, adapter, params } },
      { name: `${adapter} beams`, request: { ...withBeams(second.request, a - 1.5), adapter } },
    ];
  });
  return [...interleaved(greedy, beams, adapters.known), ...others];
}

/** What tells kinds of requests apart: the adapter, beams and their length penalty, sampling. */
function kindOf({ adapter, params }: IdsRequest): string {
  const { numBeams = 1, temperature, lengthPenalty } = params!;
  return JSON.stringify([adapter, numBeams, temperature !== undefined, Math.sign(lengthPenalty ?? 0)]);
}

/** The first `count` of each kind. */
function ofEachKind(mixed: Mixed[], count: number): Mixed[] {
  const kinds = mixed.map(({ request }) => kindOf(request));
  return mixed.filter((_, i) => kinds.slice(0, i).filter((kind) => kind === kinds[i]).length < count);
}

/** One request of each kind, with the same few tokens for all and nothing to compare with. */
const shortOnes = (mixed: Mixed[]): Mixed[] =>
  ofEachKind(mixed, 1).map(({ name, request }) => ({
    name,
    request: { ...request, params: { ...request.params, maxNewTokens: 3 } },
  }));

/** One of each kind in turn, so that neighbours in a batch differ. */
function interleaved(...kinds: Mixed[][]): Mixed[] {
  const longest = Math.max(...kinds.map(({ length }) => length));
  return Array.from({ length: longest }, (_, i) => kinds.flatMap((kind) => kind.slice(i, i + 1))).flat();
}

const chosenRuns = runs.filter(({ device, dtype }) => dtype === (isChecked(device) ? 'f16' : 'f32'));
const models = REFERENCE_MODELS.flatMap((model) => chosenRuns.map((run) => ({ ...model, ...run })));

describe.each(models)('$name on $device in $dtype', ({ name, folders = {}, device, dtype }) => {
  let adapters: Adapters;
  let mixed: Mixed[];
  let alone: string[];

  const withAdapters = (options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(name, { ...folders, ...loadedFor({ device, dtype }), ...options }, (loaded) => {
      adapters.load(loaded);
      use(loaded);
    });
  const requests = (): IdsRequest[] => mixed.map(({ request }) => request);

  function expectRight(index: number, result: EngineResult): void {
    const { name: of, check } = mixed[index]!;
    check?.(result);
    expect(bytesOf(result), of).toBe(alone[index]);
  }
  const expectAll = (results: EngineResult[]): void => mixed.forEach((_, i) => expectRight(i, results[i]!));

  beforeAll(async () => {
    adapters = await adaptersOf(name, folders);
    mixed = await mixedRequests(name, adapters);
    if (isEmulated(device)) mixed = isChecked(device) ? shortOnes(mixed) : ofEachKind(mixed, 2);
    await withAdapters({}, (loaded) => {
      alone = requests().map((request) => bytesOf(runTogether(loaded, [request])[0]!));
    });
  });

  it.skipIf(isChecked(device))('has requests of every kind that differ', () => {
    expect(mixed.filter(({ check }) => check !== undefined).length).toBeGreaterThanOrEqual(isEmulated(device) ? 6 : 8);
    expect(new Set(alone).size).toBeGreaterThanOrEqual(8);
    const kinds = new Set(requests().map(kindOf));
    expect(kinds.size).toBeGreaterThanOrEqual(9);
    if (name !== 'llama-gqa-tiny') {
      expect(new Set(requests().map(({ images }) => images![0]!.digest)).size).toBeGreaterThanOrEqual(2);
    }
  });

  it.skipIf(isChecked(device))('answers otherwise with an adapter', async () => {
    const [request] = requests();
    await withAdapters({}, (loaded) => {
      const all = [undefined, ...adapters.names].map((adapter) => ({ ...request!, adapter }));
      expect(new Set(runTogether(loaded, all).map(bytesOf)).size).toBe(3);
    });
  });

  const variants: [string, LoadOptions][] = [
    ['in one batch', { maxBatchSize: 200, kvCacheTokens: 16384 }],
    ['in batches of eight', { maxBatchSize: 8 }],
    ['in chunks of 9 tokens', { maxBatchSize: 30, maxStepTokens: 9 }],
    ['without recorded graphs and caches', { decodeGraphs: false, prefixCache: false, imageCacheBytes: 0 }],
  ];
  // The emulated GPU is asked the others together, below.
  it.each(isEmulated(device) ? variants.slice(0, 1) : variants)(
    'gives the answers of the reference, and each request the bytes it has alone, %s',
    async (_, options) => {
      await withAdapters(options, (loaded) => expectAll(runTogether(loaded, requests())));
    },
  );

  it.skipIf(isEmulated(device))(
    'gives them for one request of each kind, on different images, that run from the first step on together',
    async () => {
      const kinds = requests().map(kindOf);
      const chosen = [...kinds.keys()].filter((i) => kinds.indexOf(kinds[i]!) === i);
      const known = chosen.filter((i) => mixed[i]!.check !== undefined);
      expect(chosen.length).toBeGreaterThanOrEqual(9);
      expect(known.length).toBeGreaterThanOrEqual(3);
      if (name !== 'llama-gqa-tiny') {
        const images = chosen.map((i) => mixed[i]!.request.images![0]!.digest);
        expect(new Set(images).size).toBeGreaterThanOrEqual(2);
      }
      const room = { maxBatchSize: 60, maxStepTokens: 4096, kvCacheTokens: 8192 };
      await withAdapters(room, ({ engine, model, adapters: held }) => {
        for (const i of chosen) {
          const { request } = mixed[i]!;
          engine.add(idsGroup(i, model, { ...request, adapter: held.identityFor(request.adapter) }));
        }
        let together = 0;
        const results = finishAll(engine, () => (together = Math.max(together, engine.stats.running)));
        expect(together).toBe(chosen.length);
        for (const i of chosen) expectRight(i, results.get(i)!);
      });
    },
  );

  /** Tokens of a pool with room for the largest request and one block more. */
  function smallPool(): number {
    const imageTokens = name === 'ziya-visual-tiny' ? 64 : 0; // not among its ids
    const blocks = requests().map(({ ids, params }) => {
      const [shared, all] = [ids.length + imageTokens, ids.length + imageTokens + params!.maxNewTokens!];
      const { numBeams = 1 } = params!;
      return Math.floor(shared / 16) + numBeams * (Math.ceil(all / 16) - Math.floor(shared / 16));
    });
    return 16 * (Math.max(...blocks) + 1);
  }

  it.skipIf(isEmulated(device))('gives the same in a pool so small that requests are preempted', async () => {
    await withAdapters({ maxBatchSize: 30, kvCacheTokens: smallPool(), prefixCache: false }, (loaded) => {
      expectAll(runTogether(loaded, requests()));
      expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
    });
  });

  it.skipIf(isEmulated(device))('gives the same when requests arrive while others run', async () => {
    await withAdapters({ maxBatchSize: 20 }, (loaded) => {
      expectAll(runTogether(loaded, requests(), { staggered: true }));
    });
  });

  it.skipIf(isChecked(device))(
    'gives the same in chunks, when requests arrive while others run and are preempted all the time',
    async () => {
      const cramped = { maxBatchSize: 30, maxStepTokens: 30, kvCacheTokens: smallPool(), prefixCache: false };
      await withAdapters(cramped, (loaded) => {
        expectAll(runTogether(loaded, requests(), { staggered: true }));
        expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
      });
    },
  );
});
