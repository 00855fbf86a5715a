// Beam search of the reference models through the whole engine: all five answers with their scores, alone and together with
// other requests, in chunks, in a pool so small that beams are preempted, and on recorded graphs.
import { readFileSync } from 'node:fs';
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
}

const MODELS: { name: string; folders?: LoadOptions; eosTokenIds?: number[] }[] = [
  { name: 'instructblip-vicuna-tiny' },
  { name: 'blip2-opt-tiny', eosTokenIds: [202] },
  { name: 'blip2-flant5-tiny', eosTokenIds: [1] },
  { name: 'instructblip-flant5-tiny', eosTokenIds: [1] },
  {
    name: 'ziya-visual-tiny',
    folders: { dir: fixturePath('ziya-visual-tiny/visual'), languageModel: fixturePath('ziya-visual-tiny/llm') },
  },
  { name: 'llama-gqa-tiny' },
];

async function referencesOf(name: string, eosTokenIds: number[]): Promise<Reference[]> {
  const { json, tensors } = readFixture<{ cases: FixtureCase[] }>(name);
  const singles = json.cases.filter(({ prefix, beam5_lp1 }) => beam5_lp1 !== undefined && !prefix.startsWith('batch'));
  return Promise.all(
    singles.map(async ({ prefix, image, greedy_ids, beam5_lp1, beam5_lpm1 }) => {
      const instructionIds = tensors.get(`${prefix}qformer_input_ids`);
      return {
        name: `${name} ${prefix}`,
        request: {
          ids: tensors.get(`${prefix}input_ids`) ?? tensors.get(`${prefix}text_ids`)!,
          eosTokenIds,
          ...(image !== undefined && { images: [await readImage(`${fixturePath(name)}/${image}`)] }),
          ...(instructionIds && { instructionIds }),
          params: { maxNewTokens: greedy_ids[0]!.length },
        },
        beams: { lp1: beam5_lp1!, lpm1: beam5_lpm1! },
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

describe.each(MODELS)('$name', ({ name, folders, eosTokenIds = [2] }) => {
  let references: Reference[];
  beforeAll(async () => {
    references = await referencesOf(name, eosTokenIds);
    expect(references.length).toBeGreaterThanOrEqual(4);
  });
  afterAll(() => expect(liveTensors()).toBe(0));

  async function withEngine(options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> {
    const loaded = await loadEngine(name, { ...folders, ...options });
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
      const imageTokens = name === 'ziya-visual-tiny' ? 64 : 0; // not among its ids
      const blocks = requests.map(({ ids, params }) => {
        const [shared, all] = [ids.length, ids.length + params!.maxNewTokens!].map((n) => (n + imageTokens) / 16);
        return Math.floor(shared!) + 5 * (Math.ceil(all!) - Math.floor(shared!));
      });
      let alone: string[] = [];
      await withEngine({}, (loaded) => {
        alone = requests.map((request) => bits(loaded, [request])[0]!);
      });
      // Room for five beams of the largest request, and one block more.
      await withEngine({ kvCacheTokens: 16 * (Math.max(...blocks) + 1), prefixCache, maxBatchSize: 30 }, (loaded) => {
        expect(bits(loaded, requests)).toEqual(alone);
        // The pool that the long prompt of this one needs holds all others, once their prompts are shared.
        if (name !== 'llama-gqa-tiny' || !prefixCache) expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
      });
    },
  );
});

describe('options that the golden data leave out', () => {
  interface Search {
    prompt: number[];
    options: {
      num_beams: number;
      early_stopping: boolean | 'never';
      length_penalty?: number;
      repetition_penalty?: number;
      no_repeat_ngram_size?: number;
      min_new_tokens?: number;
      bad_words_ids?: number[][];
      eos_token_id: number[];
    };
    ids: number[][];
    scores: number[];
  }
  const {
    model: name,
    max_new_tokens,
    cases,
  } = JSON.parse(readFileSync(fixturePath('generated/beams.json'), 'utf8')) as {
    model: string;
    max_new_tokens: number;
    cases: Search[];
  };

  const requestOf = ({ prompt, options }: Search): IdsRequest => ({
    ids: prompt,
    eosTokenIds: options.eos_token_id,
    params: {
      maxNewTokens: max_new_tokens,
      numBeams: options.num_beams,
      numReturnSequences: options.num_beams,
      earlyStopping: options.early_stopping,
      lengthPenalty: options.length_penalty,
      repetitionPenalty: options.repetition_penalty,
      noRepeatNgramSize: options.no_repeat_ngram_size,
      minNewTokens: options.min_new_tokens,
      badWords: options.bad_words_ids,
    },
  });

  it('give the answers and scores of transformers: early stopping, several end ids, penalties, bans', async () => {
    const loaded = await loadEngine(name, { maxBatchSize: 20 });
    const { engine, model, dispose } = loaded;
    cases.forEach((search, id) => engine.add(idsGroup(id, model, requestOf(search))));
    const results = finishAll(engine);
    expect(cases.length).toBeGreaterThan(60);
    cases.forEach(({ ids, scores, options }, id) => {
      const expected = { ids, scores, lengths: ids.map(({ length }) => length) };
      expectBeams(results.get(id)!, expected, JSON.stringify(options));
    });
    const ways = new Set(cases.map(({ options }) => String(options.early_stopping)));
    expect([...ways].sort()).toEqual(['false', 'never', 'true']);
    expect(cases.flatMap(({ ids }) => ids).filter(({ length }) => length < max_new_tokens).length).toBeGreaterThan(30);
    dispose();
    expect(liveTensors()).toBe(0);
  });
});
