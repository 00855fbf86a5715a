// The reference models through the whole engine: greedy ids exactly as transformers gives them, alone, batched with others,
// chunked, preempted, from the prefix cache and from recorded graphs; log-probabilities within the fixture's tolerance.
import { beforeAll, describe, expect, it } from 'vitest';
import type { SequenceImage } from '../lib/engine/sequence.js';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, idsSequence, loadEngine, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { plainRequests, REFERENCE_MODELS, type PlainRequest } from './support/reference-requests.js';

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

describe.each(REFERENCE_MODELS)('$name', ({ name, folders }) => {
  let references: PlainRequest[];
  beforeAll(async () => {
    references = await plainRequests(name);
    expect(references.length).toBeGreaterThanOrEqual(4);
  });

  const requests = (): IdsRequest[] => references.map(({ request }) => request);
  const withModel = (options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(name, { ...folders, ...options }, use);

  it.each(variants)('gives the reference ids one request at a time, %s', async (_, options) => {
    await withModel(options, (loaded) => {
      for (const { request, ids } of references) expect(runTogether(loaded, [request])[0]!.tokenIds).toEqual(ids);
    });
  });

  it.each(variants)('gives them in one batch, %s', async (_, options) => {
    await withModel(options, (loaded) => {
      const results = runTogether(loaded, requests());
      references.forEach(({ ids }, id) => expect(results[id]!.tokenIds).toEqual(ids));
    });
  });

  it('gives them when the pool is so small that sequences are preempted all the time', async () => {
    // Room for the longest request and little more.
    const longest = Math.max(...references.map(({ request, ids }) => request.ids.length + ids.length));
    await withModel({ kvCacheTokens: POOLS_FOR_TWO[name] ?? longest + 16, prefixCache: false }, (loaded) => {
      const results = runTogether(loaded, [...requests(), ...requests()]);
      [...references, ...references].forEach(({ ids }, id) => expect(results[id]!.tokenIds).toEqual(ids));
      if (name !== LLAMA) expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
    });
  });

  it('gives the same bits from recorded graphs, from direct steps and from 16-token chunks', async () => {
    const bits = async (options: LoadOptions): Promise<unknown[]> => {
      let logprobs: unknown[] = [];
      await withModel(options, (loaded) => {
        const asked = requests().map((request) => ({ ...request, params: { ...request.params, logprobs: 5 } }));
        logprobs = runTogether(loaded, asked).map((result) => result.logprobs);
      });
      return logprobs;
    };
    const direct = await bits({ decodeGraphs: false, maxBatchSize: 1, maxStepTokens: 4096 });
    expect(direct.length).toBe(references.length);
    expect(await bits({})).toEqual(direct);
    expect(await bits({ maxStepTokens: 16 })).toEqual(direct);
  });

  it('gives the log-probabilities of the reference at every step', async () => {
    await withModel({}, (loaded) => {
      for (const { request, ids, logprobs } of references) {
        const [result] = runTogether(loaded, [{ ...request, params: { ...request.params, logprobs: 3 } }]);
        expect(logprobs).toHaveLength(ids.length);
        result!.logprobs!.forEach(({ tokenId, logprob, top }, step) => {
          // The fixture allows 1e-3 for logits; a log-softmax moves by no more than twice that.
          expect(Math.abs(logprob - logprobs[step]!)).toBeLessThan(2e-3);
          expect(top).toHaveLength(3);
          expect(top![0]).toEqual({ tokenId, logprob });
          expect(top![1]!.logprob).toBeLessThan(logprob);
        });
      }
    });
  });
});

describe('image features', () => {
  const loadCase = async (): Promise<{ request: IdsRequest; second: SequenceImage }> => {
    const references = await plainRequests(VICUNA);
    return { request: references[0]!.request, second: references[2]!.request.images![0]! };
  };

  it('are computed once per picture, however many questions and sequences ask for them', async () => {
    const { request, second } = await loadCase();
    const { engine, model, imageEncoder, dispose } = await loadEngine(VICUNA);
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
    const { engine, model, imageEncoder, dispose } = await loadEngine(VICUNA, { imageCacheBytes: 0 });
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
