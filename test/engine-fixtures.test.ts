// The reference models through the whole engine, on every device: greedy ids exactly as transformers gives them, alone, batched with
// others, chunked, preempted, from the prefix cache and from recorded graphs; log-probabilities within the fixture's tolerance. In
// 16 bits the log-probabilities of the first token, and the same bits in all those ways.
import { beforeAll, describe, expect, it } from 'vitest';
import type { EngineResult } from '../lib/engine/protocol.js';
import type { SequenceImage } from '../lib/engine/scheduling/sequence.js';
import { liveTensors } from '../lib/tensor/index.js';
import { expectDevices, halfRuns, inF32, isChecked, isEmulated, isUnchecked, testDevices } from './support/devices.js';
import { bytesOf, finishAll, idsSequence, loadEngine, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import {
  plainRequests,
  REFERENCE_MODELS,
  shortened,
  shortest,
  type PlainRequest,
} from './support/reference-requests.js';
import { LOGPROBS } from './support/tolerances.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';
const LLAMA = 'llama-gqa-tiny';
/** Where one request takes most of a small pool, for its encoder or its image: tokens of one in which two begin and cannot finish. */
const POOLS_FOR_TWO: Record<string, number> = {
  'blip2-flant5-tiny': 112,
  'instructblip-flant5-tiny': 96,
  'ziya-visual-tiny': 208,
};

const variants: [string, LoadOptions][] = [
  ['with defaults', {}],
  ['with chunks of 9 tokens', { maxStepTokens: 9 }],
  ['without recorded graphs', { decodeGraphs: false }],
  ['without prefix and image cache', { prefixCache: false, imageCacheBytes: 0 }],
];

const requestsOf = (references: readonly PlainRequest[]): IdsRequest[] => references.map(({ request }) => request);

/** All requests of a model with one prompt each; of these the emulated GPU with checks is asked the two shortest for three tokens. */
async function referencesFor(device: string, name: string): Promise<PlainRequest[]> {
  const references = await plainRequests(name);
  expect(references.length).toBeGreaterThanOrEqual(4);
  return isChecked(device) ? shortened(references, 2, 3) : references;
}

const models = REFERENCE_MODELS.flatMap((model) => testDevices.map((device) => ({ ...model, device })));

describe.each(models)('$name on $device', ({ name, folders, device }) => {
  let references: PlainRequest[];
  beforeAll(async () => {
    references = await referencesFor(device, name);
  });

  const withModel = (options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(name, { ...folders, ...inF32(device), ...options }, use);

  // The emulated GPU is asked one at a time below, with log-probabilities.
  it.skipIf(isEmulated(device)).each(variants)(
    'gives the reference ids one request at a time, %s',
    async (_, options) => {
      await withModel(options, (loaded) => {
        for (const { request, ids } of references) expect(runTogether(loaded, [request])[0]!.tokenIds).toEqual(ids);
      });
    },
  );

  // The emulated GPU is asked the others below, for its bits.
  it.each(isEmulated(device) ? variants.slice(0, 2) : variants)('gives them in one batch, %s', async (_, options) => {
    await withModel(options, (loaded) => {
      const results = runTogether(loaded, requestsOf(references));
      references.forEach(({ ids }, id) => expect(results[id]!.tokenIds).toEqual(ids));
    });
  });

  // On the emulated GPU one model, with checks asked for enough tokens to fill blocks; engine-everything.test.ts asks the others.
  it.skipIf(isEmulated(device) && name !== LLAMA)(
    'gives them when the pool is so small that sequences are preempted all the time',
    async () => {
      const once = isChecked(device) ? shortest(await plainRequests(name), 2) : references;
      const asked = [...once, ...once];
      // Room for the longest request and little more.
      const longest = Math.max(...once.map(({ request, ids }) => request.ids.length + ids.length));
      await withModel({ kvCacheTokens: POOLS_FOR_TWO[name] ?? longest + 16, prefixCache: false }, (loaded) => {
        const results = runTogether(loaded, requestsOf(asked));
        asked.forEach(({ ids }, id) => expect(results[id]!.tokenIds).toEqual(ids));
        // Its long prompt needs a pool that holds all others.
        if (name !== LLAMA || isChecked(device)) expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
      });
    },
  );

  it.skipIf(isChecked(device))(
    'gives the same bits from recorded graphs, from direct steps and from 16-token chunks',
    async () => {
      const bits = async (options: LoadOptions): Promise<unknown[]> => {
        let logprobs: unknown[] = [];
        await withModel(options, (loaded) => {
          const asked = requestsOf(references).map((request) => ({
            ...request,
            params: { ...request.params, logprobs: 5 },
          }));
          logprobs = runTogether(loaded, asked).map((result) => result.logprobs);
        });
        return logprobs;
      };
      const direct = await bits({ decodeGraphs: false, maxBatchSize: 1, maxStepTokens: 4096 });
      expect(direct.length).toBe(references.length);
      expect(await bits({})).toEqual(direct);
      expect(await bits({ maxStepTokens: 16 })).toEqual(direct);
    },
  );

  it('gives ids and log-probabilities of the reference at every step, one request at a time', async () => {
    await withModel({}, (loaded) => {
      for (const { request, ids, logprobs } of references) {
        const [result] = runTogether(loaded, [{ ...request, params: { ...request.params, logprobs: 3 } }]);
        expect(result!.tokenIds).toEqual(ids);
        expect(logprobs).toHaveLength(ids.length);
        result!.logprobs!.forEach(({ tokenId, logprob, top }, step) => {
          expect(Math.abs(logprob - logprobs[step]!)).toBeLessThan(LOGPROBS.f32.atol);
          expect(top).toHaveLength(3);
          expect(top![0]).toEqual({ tokenId, logprob });
          expect(top![1]!.logprob).toBeLessThan(logprob);
        });
      }
    });
  });
});

// The emulated GPU in one 16-bit dtype without checks, in the other with them.
const chosenRuns = halfRuns.filter(
  ({ device, dtype }) => !isEmulated(device) || dtype === (isUnchecked(device) ? 'bf16' : 'f16'),
);
const modelsInHalf = REFERENCE_MODELS.flatMap((model) => chosenRuns.map((run) => ({ ...model, ...run })));

describe.each(modelsInHalf)('$name on $device in $dtype', ({ name, folders, device, dtype }) => {
  let references: PlainRequest[];
  beforeAll(async () => {
    references = await referencesFor(device, name);
  });

  const run = async (options: LoadOptions, inTurn = false): Promise<EngineResult[]> => {
    let results: EngineResult[] = [];
    const asked = references.map(({ request }) => ({ ...request, params: { ...request.params, logprobs: 3 } }));
    await withEngine(name, { ...folders, device, dtype, ...options }, (loaded) => {
      results = inTurn ? asked.map((request) => runTogether(loaded, [request])[0]!) : runTogether(loaded, asked);
    });
    return results;
  };

  it('gives the same bytes alone, together, in chunks and without recorded graphs, near the reference', async () => {
    const alone = await run({}, true);
    alone.forEach(({ tokenIds, logprobs: [first] = [] }, i) => {
      const { ids, logprobs } = references[i]!;
      const found = first!.top!.find(({ tokenId }) => tokenId === ids[0]);
      expect(Math.abs(found!.logprob - logprobs[0]!)).toBeLessThan(LOGPROBS[dtype].atol);
      expect(tokenIds.length).toBeGreaterThan(0);
    });
    const bytes = alone.map(bytesOf);
    expect((await run({})).map(bytesOf), 'together').toEqual(bytes);
    const chunks = await run({ maxStepTokens: 9, decodeGraphs: false, prefixCache: false });
    expect(chunks.map(bytesOf), 'in chunks, without graphs').toEqual(bytes);
  });
});

describe.each(testDevices)('image features on %s', (device) => {
  const loadCase = async (): Promise<{ request: IdsRequest; second: SequenceImage }> => {
    const references = await plainRequests(VICUNA);
    if (isChecked(device)) references.forEach(({ request }) => (request.params = { maxNewTokens: 1 }));
    return { request: references[0]!.request, second: references[2]!.request.images![0]! };
  };

  it('are computed once per picture, however many questions and sequences ask for them', async () => {
    const { request, second } = await loadCase();
    const { engine, model, imageEncoder, dispose } = await loadEngine(VICUNA, inF32(device));
    for (let id = 0; id < 4; id++) {
      engine.add(idsSequence(id, model, { ...request, instructionIds: [101, 200 + id, 102] }));
    }
    finishAll(engine);
    expect(imageEncoder!.encodedImages).toBe(1);
    engine.add(idsSequence(9, model, { ...request, images: [second] }));
    finishAll(engine);
    expect(imageEncoder!.encodedImages).toBe(2);
    dispose();
    expect(liveTensors()).toBe(0);
  });

  it('are not needed at all when the whole image is in the prefix cache', async () => {
    const { request } = await loadCase();
    const { engine, model, imageEncoder, dispose } = await loadEngine(VICUNA, { ...inF32(device), imageCacheBytes: 0 });
    const long = { ...request, ids: [...request.ids, ...request.ids.slice(8), ...request.ids.slice(8)] };
    engine.add(idsSequence(1, model, long));
    const first = finishAll(engine).get(1)!;
    engine.add(idsSequence(2, model, long));
    const again = finishAll(engine).get(2)!;
    expect(again.usage.cachedTokens).toBeGreaterThanOrEqual(16);
    expect(again.tokenIds).toEqual(first.tokenIds);
    expect(imageEncoder!.encodedImages).toBe(1);
    expect(again.timings.imageMs).toBe(0);
    dispose();
  });
});
