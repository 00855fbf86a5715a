// The reference models through the whole engine: greedy ids exactly as transformers gives them, alone, batched with others,
// chunked, preempted, from the prefix cache and from recorded graphs; log-probabilities within the fixture's tolerance.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SequenceImage } from '../lib/engine/sequence.js';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, fixturePath, idsSequence, loadEngine, readImage } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { readFixture } from './support/safetensors-fixture.js';

interface FixtureCase {
  prefix: string;
  image?: string;
  images?: string[];
  greedy_ids: number[][];
}

interface Reference {
  name: string;
  request: IdsRequest;
  ids: number[];
  logprobs: number[] | undefined;
}

const VICUNA = 'instructblip-vicuna-tiny';
const OPT = 'blip2-opt-tiny';
const T5 = ['blip2-flant5-tiny', 'instructblip-flant5-tiny'];
/** Where each request takes blocks for its encoder too: tokens of a pool in which two can begin and not finish. */
const POOLS_FOR_TWO: Record<string, number> = { 'blip2-flant5-tiny': 112, 'instructblip-flant5-tiny': 96 };
const LLAMA = 'llama-gqa-tiny';

/** Questions about images: one request per single case of the fixture. */
async function imageReferences(fixture: string): Promise<Reference[]> {
  const { json, tensors } = readFixture<{ cases: FixtureCase[]; token_ids: { eos: number } }>(fixture);
  const singles = json.cases.filter(({ prefix }) => /^c\d\.$/.test(prefix));
  return Promise.all(
    singles.map(async ({ prefix, image, greedy_ids }) => {
      const instructionIds = tensors.get(`${prefix}qformer_input_ids`);
      return {
        name: `${fixture} ${prefix}`,
        request: {
          ids: tensors.get(`${prefix}input_ids`)!,
          images: [await readImage(`${fixturePath(fixture)}/${image}`)],
          ...(instructionIds && { instructionIds }),
          params: { maxNewTokens: greedy_ids[0]!.length },
          eosTokenIds: [json.token_ids.eos],
        },
        ids: greedy_ids[0]!,
        logprobs: tensors.get(`${prefix}greedy_step_logprobs`),
      };
    }),
  );
}

function llamaReferences(): Reference[] {
  const { json, tensors } = readFixture<{ cases: FixtureCase[] }>(LLAMA);
  const singles = json.cases.filter(({ prefix }) => prefix !== 'batch.');
  return singles.map(({ prefix, greedy_ids }) => ({
    name: `${LLAMA} ${prefix}`,
    request: { ids: tensors.get(`${prefix}input_ids`)!, params: { maxNewTokens: greedy_ids[0]!.length } },
    ids: greedy_ids[0]!,
    logprobs: tensors.get(`${prefix}greedy_step_logprobs`),
  }));
}

const variants: [string, LoadOptions][] = [
  ['with defaults', {}],
  ['with chunks of 9 tokens', { maxStepTokens: 9 }],
  ['without recorded graphs', { decodeGraphs: false }],
  ['without prefix and image cache', { prefixCache: false, imageCacheBytes: 0 }],
];

const fixtures: [name: string, load: () => Promise<Reference[]>][] = [
  [VICUNA, () => imageReferences(VICUNA)],
  [OPT, () => imageReferences(OPT)],
  ...T5.map((fixture): (typeof fixtures)[number] => [fixture, () => imageReferences(fixture)]),
  [LLAMA, () => Promise.resolve(llamaReferences())],
];

describe.each(fixtures)('%s', (name, load) => {
  let references: Reference[];
  beforeAll(async () => {
    references = await load();
  });
  afterAll(() => expect(liveTensors()).toBe(0));

  async function withEngine(options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> {
    const loaded = await loadEngine(name, options);
    try {
      use(loaded);
      expect(loaded.engine.blocks.inUse).toBe(0);
    } finally {
      loaded.dispose();
    }
  }

  it.each(variants)('gives the reference ids one request at a time, %s', async (_, options) => {
    await withEngine(options, ({ engine, model }) => {
      expect(references.length).toBeGreaterThanOrEqual(4);
      for (const { request, ids } of references) {
        engine.add(idsSequence(1, model, request));
        expect(finishAll(engine).get(1)!.tokenIds).toEqual(ids);
      }
    });
  });

  it.each(variants)('gives them in one batch, %s', async (_, options) => {
    await withEngine(options, ({ engine, model }) => {
      references.forEach(({ request }, id) => engine.add(idsSequence(id, model, request)));
      const results = finishAll(engine);
      references.forEach(({ ids }, id) => expect(results.get(id)!.tokenIds).toEqual(ids));
    });
  });

  it('gives them when the pool is so small that sequences are preempted all the time', async () => {
    // Room for the longest request and little more.
    const longest = Math.max(...references.map(({ request, ids }) => request.ids.length + ids.length));
    await withEngine(
      { kvCacheTokens: POOLS_FOR_TWO[name] ?? longest + 16, prefixCache: false },
      ({ engine, model }) => {
        const copies = [...references, ...references];
        copies.forEach(({ request }, id) => engine.add(idsSequence(id, model, request)));
        const results = finishAll(engine);
        copies.forEach(({ ids }, id) => expect(results.get(id)!.tokenIds).toEqual(ids));
        if (name !== LLAMA) expect(engine.stats.preemptions).toBeGreaterThan(0);
      },
    );
  });

  it('gives the same bits from recorded graphs, from direct steps and from 16-token chunks', async () => {
    const bits = async (options: LoadOptions): Promise<unknown[]> => {
      const logprobs: unknown[] = [];
      await withEngine(options, ({ engine, model }) => {
        references.forEach(({ request }, id) => {
          engine.add(idsSequence(id, model, { ...request, params: { ...request.params, logprobs: 5 } }));
        });
        for (const [id, result] of finishAll(engine)) logprobs[id] = result.logprobs;
      });
      return logprobs;
    };
    const direct = await bits({ decodeGraphs: false, maxBatchSize: 1, maxStepTokens: 4096 });
    expect(direct.length).toBe(references.length);
    expect(await bits({})).toEqual(direct);
    expect(await bits({ maxStepTokens: 16 })).toEqual(direct);
  });

  it('gives the log-probabilities of the reference at every step', async () => {
    await withEngine({}, ({ engine, model }) => {
      for (const { request, ids, logprobs } of references) {
        engine.add(idsSequence(1, model, { ...request, params: { ...request.params, logprobs: 3 } }));
        const result = finishAll(engine).get(1)!.logprobs!;
        expect(logprobs).toHaveLength(ids.length);
        result.forEach(({ tokenId, logprob, top }, step) => {
          // The fixture allows 1e-3 for logits; a log-softmax moves by no more than twice that.
          expect(Math.abs(logprob - logprobs![step]!)).toBeLessThan(2e-3);
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
    const references = await imageReferences(VICUNA);
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
