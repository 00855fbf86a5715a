// Beam search of the reference models through the whole engine, on every device: all five answers with their scores, alone and
// together with other requests, in chunks, in a pool so small that beams are preempted, and on recorded graphs. In 16 bits scores
// are compared with the likelihood that the CPU gives the tokens of each beam.
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { DEFAULT_BATCH_SIZE } from '../lib/io/memory-estimate.js';
import { Ranking } from '../lib/engine/scheduling/ranking.js';
import {
  expectDevices,
  halfRuns,
  inF32,
  isChecked,
  isEmulated,
  isUnchecked,
  loadedFor,
  runs,
  testDevices,
} from './support/devices.js';
import {
  bytesOf,
  finishAll,
  fixturePath,
  idsGroup,
  idsSequence,
  runTogether,
  withEngine,
} from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import {
  expectBeams,
  plainRequests,
  REFERENCE_MODELS,
  shortened,
  shortest,
  withBeams,
  type PlainRequest,
} from './support/reference-requests.js';
import { LOGPROBS } from './support/tolerances.js';

expectDevices();

const models = REFERENCE_MODELS.flatMap((model) => runs.map((run) => ({ ...model, ...run })));

describe.each(models)('$name on $device in $dtype', ({ name, folders, device, dtype }) => {
  let references: PlainRequest[];
  beforeAll(async () => {
    references = await plainRequests(name);
    expect(references.length).toBeGreaterThanOrEqual(4);
  });

  const withModel = (options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(name, { ...folders, ...loadedFor({ device, dtype }), ...options }, use);

  it.runIf(dtype === 'f32')(
    'gives the five answers and scores of the reference, with length penalty 1 and −1',
    async () => {
      await withModel({}, (loaded) => {
        const searched = isChecked(device) ? shortest(references, 1) : references;
        for (const [i, { request, beams, name: of }] of searched.entries()) {
          const penalties = [
            { penalty: 1, expected: beams.lp1 },
            { penalty: -1, expected: beams.lpm1 },
          ];
          // on the emulated GPU in turn
          for (const { penalty, expected } of isEmulated(device) ? [penalties[i % 2]!] : penalties) {
            const [result] = runTogether(loaded, [withBeams(request, penalty)]);
            expectBeams(result!, expected, `${of} length penalty ${penalty}`);
          }
        }
      });
    },
  );

  it.skipIf(dtype !== 'f32' || isEmulated(device))(
    'takes more searches than the default batch of 16 holds: three run, the others wait in line',
    async () => {
      await withModel({ maxBatchSize: DEFAULT_BATCH_SIZE }, ({ engine, model }) => {
        const searches = references.flatMap(({ request, beams }) => [
          { request: withBeams(request, 1), expected: beams.lp1 },
          { request: withBeams(request, -1), expected: beams.lpm1 },
        ]);
        expect(searches.length).toBeGreaterThanOrEqual(8);
        searches.forEach(({ request }, id) => engine.add(idsGroup(id, model, request)));
        let [running, waiting] = [0, 0];
        const results = finishAll(engine, () => {
          running = Math.max(running, engine.stats.running);
          waiting = Math.max(waiting, engine.stats.waiting);
        });
        expect(running).toBe(3);
        expect(waiting).toBeGreaterThanOrEqual(searches.length - 3);
        searches.forEach(({ expected }, id) => expectBeams(results.get(id)!, expected, String(id)));
      });
    },
  );

  // Eight or more requests: beams of both penalties, samples and greedy ones, with all images. On the emulated GPU
  // those of two prompts, with checks those of one, for a few tokens.
  const asked = () => {
    if (isChecked(device)) return shortened(references, 1, 4);
    return isUnchecked(device) ? shortest(references, 2) : references;
  };
  const mixed = (): IdsRequest[] =>
    asked().flatMap(({ request }, i) => [
      withBeams(request, i % 2 === 0 ? 1 : -1),
      request,
      { ...request, params: { ...request.params, temperature: 0.9, topK: 30, seed: i } },
    ]);

  const bits = (loaded: LoadedEngine, requests: readonly IdsRequest[]): string[] =>
    runTogether(loaded, requests).map(bytesOf);

  const variants: [string, LoadOptions][] = [
    ['with chunks of 9 tokens', { maxStepTokens: 9 }],
    ['with defaults', { maxBatchSize: 30 }],
    ['without recorded graphs and prefix cache', { decodeGraphs: false, prefixCache: false }],
  ];
  // On the emulated GPU in 16 bits alone, where it is faster: in one dtype without checks, in the other with them.
  it
    .skipIf(isEmulated(device) && dtype !== (isUnchecked(device) ? 'f16' : 'bf16'))
    .each(isEmulated(device) ? variants.slice(0, 1) : variants)(
    'gives a mix of beams, samples and greedy answers the bytes that each has alone, %s',
    async (_, options) => {
      let alone: string[] = [];
      const requests = mixed();
      if (!isEmulated(device)) expect(requests.length).toBeGreaterThanOrEqual(8);
      await withModel({}, (loaded) => {
        alone = requests.map((request) => bits(loaded, [request])[0]!);
      });
      await withModel(options, (loaded) => expect(bits(loaded, requests)).toEqual(alone));
    },
  );

  // The emulated GPU is asked this by engine-everything.test.ts.
  it.skipIf(isEmulated(device)).each([true, false])(
    'gives them the same when beams are preempted all the time, prefix cache %s',
    async (prefixCache) => {
      const requests = mixed();
      const imageTokens = name === 'ziya-visual-tiny' ? 64 : 0; // not among its ids
      const blocks = requests.map(({ ids, params }) => {
        const [shared, all] = [ids.length, ids.length + params!.maxNewTokens!].map((n) => (n + imageTokens) / 16);
        return Math.floor(shared!) + 5 * (Math.ceil(all!) - Math.floor(shared!));
      });
      let alone: string[] = [];
      await withModel({}, (loaded) => {
        alone = requests.map((request) => bits(loaded, [request])[0]!);
      });
      // Room for five beams of the largest request, and one block more.
      await withModel({ kvCacheTokens: 16 * (Math.max(...blocks) + 1), prefixCache, maxBatchSize: 30 }, (loaded) => {
        expect(bits(loaded, requests)).toEqual(alone);
        // The pool that the long prompt of this one needs holds all others, once their prompts are shared.
        if (name !== 'llama-gqa-tiny' || !prefixCache) expect(loaded.engine.stats.preemptions).toBeGreaterThan(0);
      });
    },
  );
});

describe.each(halfRuns)('beams on $device in $dtype', ({ device, dtype }) => {
  const LLAMA = 'llama-gqa-tiny';

  it('have the scores that the CPU gives their tokens', async () => {
    const [{ request }] = shortest(await plainRequests(LLAMA), 1) as [PlainRequest];
    const params = { maxNewTokens: 4, numBeams: 3, numReturnSequences: 3, lengthPenalty: 1 };
    let found: { tokenIds: number[]; score: number }[] = [];
    await withEngine(LLAMA, { device, dtype }, (loaded) => {
      found = runTogether(loaded, [{ ...request, params }])[0]!.beams!;
    });
    const answers = found.map(({ tokenIds }) => tokenIds);
    expect(new Set(answers.map((ids) => ids.join())).size).toBe(3);
    await withEngine(LLAMA, {}, ({ engine, model }) => {
      engine.add(new Ranking(idsSequence(1, model, request), answers));
      finishAll(engine)
        .get(1)!
        .candidates!.forEach(({ logprobs }, i) => {
          const mean = logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length;
          expect(Math.abs(found[i]!.score - mean)).toBeLessThan(LOGPROBS[dtype].atol);
        });
    });
  });
});

describe.each(testDevices)('options that the golden data leave out, on %s', (device) => {
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
    cases: all,
  } = JSON.parse(readFileSync(fixturePath('generated/beams.json'), 'utf8')) as {
    model: string;
    max_new_tokens: number;
    cases: Search[];
  };

  const ways = [...new Set(all.map(({ options }) => String(options.early_stopping)))];
  // With checks one of each way to stop.
  const cases = isChecked(device)
    ? ways.map((way) => all.find(({ options }) => String(options.early_stopping) === way)!)
    : all;

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
    expect(all.length).toBeGreaterThan(60);
    await withEngine(name, { ...inF32(device), maxBatchSize: 20 }, (loaded) => {
      const results = runTogether(loaded, cases.map(requestOf));
      cases.forEach(({ ids, scores, options }, id) => {
        const expected = { ids, scores, lengths: ids.map(({ length }) => length) };
        expectBeams(results[id]!, expected, JSON.stringify(options));
      });
    });
    expect(ways.sort()).toEqual(['false', 'never', 'true']);
    expect(all.flatMap(({ ids }) => ids).filter(({ length }) => length < max_new_tokens).length).toBeGreaterThan(30);
  });
});
