// Beam search of the reference models through the whole engine: all five answers with their scores, alone and together with
// other requests, in chunks, in a pool so small that beams are preempted, and on recorded graphs.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EngineResult } from '../lib/engine/protocol.js';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, fixturePath, idsGroup, loadEngine, readImage } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { readFixture } from './support/safetensors-fixture.js';

interface BeamCase {
  ids: number[][];
  scores: number[];
  lengths: number[];
}

interface FixtureCase {
  prefix: string;
  image?: string;
  greedy_ids: number[][];
  beam5_lp1?: BeamCase;
  beam5_lpm1?: BeamCase;
}

interface Reference {
  name: string;
  request: IdsRequest;
  beams: { lp1: BeamCase; lpm1: BeamCase };
  greedy: number[];
}

const MODELS = ['instructblip-vicuna-tiny', 'llama-gqa-tiny'];

async function referencesOf(name: string): Promise<Reference[]> {
  const { json, tensors } = readFixture<{ cases: FixtureCase[] }>(name);
  const singles = json.cases.filter(({ prefix, beam5_lp1 }) => beam5_lp1 !== undefined && !prefix.startsWith('batch'));
  return Promise.all(
    singles.map(async ({ prefix, image, greedy_ids, beam5_lp1, beam5_lpm1 }) => {
      const instructionIds = tensors.get(`${prefix}qformer_input_ids`);
      return {
        name: `${name} ${prefix}`,
        request: {
          ids: tensors.get(`${prefix}input_ids`)!,
          ...(image !== undefined && { images: [await readImage(`${fixturePath(name)}/${image}`)] }),
          ...(instructionIds && { instructionIds }),
          params: { maxNewTokens: greedy_ids[0]!.length },
        },
        beams: { lp1: beam5_lp1!, lpm1: beam5_lpm1! },
        greedy: greedy_ids[0]!,
      };
    }),
  );
}

const withBeams = (request: IdsRequest, lengthPenalty: number): IdsRequest => ({
  ...request,
  params: { ...request.params, numBeams: 5, numReturnSequences: 5, lengthPenalty },
});

/** Ids exactly, scores within the relative 1e-4 of the fixtures. */
function expectBeams({ beams, tokenIds }: EngineResult, expected: BeamCase, name: string): void {
  const answers = expected.ids.map((ids, i) => ids.slice(0, expected.lengths[i]));
  expect(
    beams!.map((beam) => beam.tokenIds),
    name,
  ).toEqual(answers);
  expect(tokenIds).toEqual(answers[0]);
  beams!.forEach(({ score }, i) => {
    const reference = expected.scores[i]!;
    expect(Math.abs(score - reference), `${name} score ${i}`).toBeLessThan(1e-4 * Math.abs(reference));
  });
}

describe.each(MODELS)('%s', (name) => {
  let references: Reference[];
  beforeAll(async () => {
    references = await referencesOf(name);
    expect(references.length).toBeGreaterThanOrEqual(4);
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

  it('gives the five answers and scores of the reference, with length penalty 1 and −1', async () => {
    await withEngine({}, ({ engine, model }) => {
      for (const { request, beams, name: of } of references) {
        for (const [penalty, expected] of [[1, beams.lp1] as const, [-1, beams.lpm1] as const]) {
          engine.add(idsGroup(1, model, withBeams(request, penalty)));
          expectBeams(finishAll(engine).get(1)!, expected, `${of} length penalty ${penalty}`);
        }
      }
    });
  });

  // Eight or more requests: beams of both penalties, samples and greedy ones, with all images.
  const mixed = (): IdsRequest[] =>
    references.flatMap(({ request }, i) => [
      withBeams(request, i % 2 === 0 ? 1 : -1),
      request,
      { ...request, params: { ...request.params, temperature: 0.9, topK: 30, seed: i } },
    ]);

  const bits = ({ engine, model }: LoadedEngine, requests: readonly IdsRequest[]): string[] => {
    requests.forEach((request, id) => engine.add(idsGroup(id, model, request)));
    const results = finishAll(engine);
    return requests.map((_, id) => {
      const { tokenIds, beams } = results.get(id)!;
      return JSON.stringify({ tokenIds, beams });
    });
  };

  it.each<[string, LoadOptions]>([
    ['with defaults', { maxBatchSize: 30 }],
    ['with chunks of 9 tokens', { maxStepTokens: 9 }],
    ['without recorded graphs and prefix cache', { decodeGraphs: false, prefixCache: false }],
  ])('gives a mix of beams, samples and greedy answers the bytes that each has alone, %s', async (_, options) => {
    let alone: string[] = [];
    const requests = mixed();
    expect(requests.length).toBeGreaterThanOrEqual(8);
    await withEngine({}, (loaded) => {
      alone = requests.map((request) => bits(loaded, [request])[0]!);
    });
    await withEngine(options, (loaded) => expect(bits(loaded, requests)).toEqual(alone));
  });

  it.each([true, false])(
    'gives them the same when beams are preempted all the time, prefix cache %s',
    async (prefixCache) => {
      const requests = mixed();
      const longest = Math.max(...requests.map(({ ids, params }) => ids.length + params!.maxNewTokens!));
      let alone: string[] = [];
      await withEngine({}, (loaded) => {
        alone = requests.map((request) => bits(loaded, [request])[0]!);
      });
      // Five beams of the longest request, and little more.
      await withEngine({ kvCacheTokens: longest + 8 * 16, prefixCache, maxBatchSize: 30 }, (loaded) => {
        expect(bits(loaded, requests)).toEqual(alone);
        expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
      });
    },
  );
});
