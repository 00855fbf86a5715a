// Ranking of candidates: the numbers against the reference on every device, and against a forward pass over prompt and candidate; the
// bytes against each candidate alone, in chunks, in a small pool and beside other requests.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadEngine as openEngine } from '../lib/engine/execution/load.js';
import { Ranking } from '../lib/engine/scheduling/ranking.js';
import type { EngineResult } from '../lib/engine/protocol.js';
import { loadModel, type Model } from '../lib/index.js';
import { loadImage } from '../lib/io/image.js';
import { Tensor, liveTensors, scope } from '../lib/tensor/index.js';
import { rankCandidates } from '../lib/rank.js';
import { expectDevices, inF32, sample, testDevices } from './support/devices.js';
import {
  finishAll,
  fixturePath,
  idsGroup,
  idsSequence,
  loadEngine,
  readImage,
  withEngine,
} from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { expectClose, readJson } from './support/fixtures.js';
import { PagedSequences, idTensor, logProbabilities } from './support/models.js';
import { readFixture } from './support/safetensors-fixture.js';
import { LOGPROBS } from './support/tolerances.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';
const LLAMA = 'llama-gqa-tiny';

// One token, many tokens, common beginnings, a duplicate, across a block of 16.
const candidates = [
  [557],
  [557, 663],
  [9, 8, 7, 6, 5],
  [557, 663, 706, 250],
  [2],
  [557],
  Array.from({ length: 21 }, (_, i) => 300 + 7 * i),
  ...Array.from({ length: 9 }, (_, i) => [40 + i, 50 - i, 3]),
];

describe('log-probabilities of candidates', () => {
  let question: IdsRequest;
  beforeAll(async () => {
    const { tensors } = readFixture(VICUNA);
    question = {
      ids: tensors.get('c0.input_ids')!,
      images: [await readImage(`${fixturePath(VICUNA)}/images/img0.png`)],
      instructionIds: tensors.get('c0.qformer_input_ids')!,
    };
  });
  const rank = ({ engine, model }: LoadedEngine, of: readonly number[][], id = 1): void =>
    engine.add(new Ranking(idsSequence(id, model, question), of));
  const scores = ({ candidates: scored }: EngineResult): number[][] => scored!.map(({ logprobs }) => logprobs);

  async function alone(): Promise<number[][]> {
    const result: number[][] = [];
    await withEngine(VICUNA, {}, (loaded) => {
      for (const candidate of candidates) {
        rank(loaded, [candidate]);
        result.push(...scores(finishAll(loaded.engine).get(1)!));
      }
    });
    return result;
  }

  it('are those of one forward pass over prompt and candidate', async () => {
    const { tensors } = readFixture(VICUNA);
    const embeds = tensors.get('c0.inputs_embeds')!;
    const { length } = question.ids;
    await withEngine(VICUNA, {}, (loaded) => {
      const { languageModel } = loaded.model;
      rank(loaded, candidates);
      const result = finishAll(loaded.engine).get(1)!;
      expect(result.candidates!.map(({ tokenIds }) => tokenIds)).toEqual(candidates);
      candidates.forEach((ids, index) => {
        scope(() => {
          const { hiddenSize, vocabSize } = languageModel;
          const own = languageModel.embed(idTensor(ids)).toFloat32();
          const all = Float32Array.from([...embeds, ...own]);
          const total = length + ids.length;
          const sequence = new PagedSequences(languageModel, 1, total);
          const logits = languageModel
            .logits(languageModel.forward(Tensor.fromArray(all, [total, hiddenSize]), sequence.next([total])))
            .toFloat32();
          ids.forEach((id, i) => {
            const row = length - 1 + i;
            const expected = logProbabilities(logits.slice(row * vocabSize, (row + 1) * vocabSize))[id]!;
            expect(Math.abs(result.candidates![index]!.logprobs[i]! - expected)).toBeLessThan(LOGPROBS.f32.atol);
          });
        });
      });
    });
  });

  it('are the bytes of each candidate alone, also in chunks, in a small pool and beside other requests', async () => {
    const expected = await alone();
    const variants: LoadOptions[] = [
      {},
      { maxStepTokens: 3 },
      { maxBatchSize: 2, prefixCache: false },
      { kvCacheTokens: 16 * 17, prefixCache: false, maxBatchSize: 30 },
    ];
    for (const options of variants) {
      await withEngine(VICUNA, options, (loaded) => {
        const { engine, model } = loaded;
        const params = { maxNewTokens: 60, ignoreEos: true };
        for (const id of [6, 7]) engine.add(idsGroup(id, model, { ...question, params }));
        rank(loaded, candidates);
        engine.add(idsGroup(8, model, { ...question, params: { ...params, maxNewTokens: 9, numBeams: 3 } }));
        rank(loaded, candidates.toReversed(), 2);
        const results = finishAll(engine);
        expect(scores(results.get(1)!)).toEqual(expected);
        expect(scores(results.get(2)!)).toEqual(expected.toReversed());
        expect(results.get(7)!.tokenIds).toHaveLength(60);
        if (options.kvCacheTokens !== undefined) expect(engine.stats.preemptions).toBeGreaterThan(0);
      });
    }
  });

  it('of single tokens cost the prompt alone, and of longer ones their own tokens', async () => {
    await withEngine(VICUNA, { prefixCache: false }, (loaded) => {
      const { engine } = loaded;
      rank(
        loaded,
        Array.from({ length: 300 }, (_, i) => [i + 3]),
      );
      finishAll(engine);
      expect(engine.stats.steps).toBe(1);
      rank(
        loaded,
        Array.from({ length: 200 }, (_, i) => [i + 3, 5, 7]),
      );
      finishAll(engine);
      // 25 steps of eight candidates.
      expect(engine.stats.steps).toBe(1 + 1 + 25);
    });
  });

  it('may be aborted at any step and leave nothing', async () => {
    await withEngine(VICUNA, {}, (loaded) => {
      rank(loaded, candidates);
      loaded.engine.step();
      loaded.engine.abort(1);
      expect(finishAll(loaded.engine).get(1)).toMatchObject({ finishReason: 'abort' });
    });
  });

  it('that do not fit the context are refused', async () => {
    await withEngine(VICUNA, { kvCacheTokens: 16 * 3 }, (loaded) => {
      expect(() => rank(loaded, [new Array<number>(40).fill(5)])).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
      );
    });
  });
});

describe('candidates as texts', () => {
  interface Reference {
    image: string;
    prompt: string;
    ranked: { candidate: string; ids: number[]; logprobs: number[]; sum: number }[];
  }
  const { models } = readJson<{ models: Record<string, Reference> }>('generated', 'ranking.json');
  afterAll(() => expect(liveTensors()).toBe(0));

  const cases = testDevices.flatMap((device) =>
    Object.entries(models).map(([name, reference]) => ({ name, device, ...reference })),
  );
  it.each(cases)(
    'have the tokens and log-probabilities of the reference in $name on $device',
    async ({ name, device, image, prompt, ranked: all }) => {
      const ranked = sample(device, all, 2);
      const { engine, prompts, dispose } = await openEngine({
        dir: fixturePath(name),
        ...inF32(device),
        kvCacheTokens: 1024,
      });
      const images = [await loadImage(fixturePath(`${name}/${image}`))];
      const texts = ranked.map(({ candidate }) => candidate);
      engine!.add(prompts!.build(1, { prompt, images, candidates: texts, params: {} }, engine!.maxContext, 0));
      const result = finishAll(engine!).get(1)!;
      dispose();
      expect(result.candidates!.map(({ tokenIds }) => tokenIds)).toEqual(ranked.map(({ ids }) => ids));
      result.candidates!.forEach(({ logprobs }, i) => {
        expectClose(logprobs, ranked[i]!.logprobs, LOGPROBS.f32, texts[i]);
      });
      const order = ranked.toSorted((a, b) => b.sum - a.sum).map(({ candidate }) => candidate);
      expect(rankCandidates(texts, result, 'sum').map(({ candidate }) => candidate)).toEqual(order);
    },
  );
});

describe('the order', () => {
  const result = {
    candidates: [
      { tokenIds: [1, 2], logprobs: [-1, -1] },
      { tokenIds: [3], logprobs: [-1.5] },
      { tokenIds: [1, 2], logprobs: [-1, -1] },
    ],
  } as EngineResult;

  it('goes by the sum or the mean, and keeps equal ones as they were given', () => {
    const order = (by: 'sum' | 'mean') => rankCandidates(['a b', 'c', 'a b'], result, by).map(({ index }) => index);
    expect(order('sum')).toEqual([1, 0, 2]);
    expect(order('mean')).toEqual([0, 2, 1]);
    expect(rankCandidates(['a b', 'c', 'a b'], result, 'sum')[1]).toEqual({
      candidate: 'a b',
      index: 0,
      sum: -2,
      mean: -1,
      tokens: 2,
    });
  });
});

describe('rank', () => {
  const fox = 'models/samples/fox_noto.png';
  let model: Model;
  beforeAll(async () => {
    model = await loadModel('models/emoji-vlm', { device: 'cpu' });
  });
  afterAll(() => model.dispose());

  it('puts what the model would answer first, also of an encoded image', async () => {
    const answers = ['This is a cat.', 'This is a fox.', 'This is a rocket.', '这是一只狐狸。'];
    const ranked = await model.rank(fox, 'What is this?', answers);
    expect(ranked[0]).toMatchObject({ candidate: 'This is a fox.', index: 1 });
    expect(ranked.map(({ sum }) => sum)).toEqual(ranked.map(({ sum }) => sum).sort((a, b) => b - a));
    for (const { sum, mean, tokens } of ranked) expect(mean).toBeCloseTo(sum / tokens, 12);
    const image = await model.encodeImage(fox);
    expect(await model.rank(image, 'What is this?', answers)).toEqual(ranked);
    image.dispose();
  });

  it('agrees with the log-probabilities of a generated answer', async () => {
    const { text, logprobs, tokenIds } = await model.answer(fox, 'What is this?', { logprobs: true });
    const [ranked] = await model.rank(fox, 'What is this?', [text]);
    const { sum, tokens } = ranked!;
    expect(tokens).toBe(tokenIds.length - 1); // without the end token
    const generated = logprobs!.slice(0, -1).reduce((total, { logprob }) => total + logprob, 0);
    expect(sum).toBeCloseTo(generated, 5);
  });

  it.each<[string, () => Promise<unknown>, RegExp]>([
    ['no candidates', () => model.rank(fox, 'What?', []), /non-empty array/],
    ['an empty candidate', () => model.rank(fox, 'What?', ['a', ' ']), /candidate 1 is empty/],
    ['a candidate that is no text', () => model.rank(fox, 'What?', ['a', 5 as never]), /candidate 1 must be a string/],
    ['an empty question', () => model.rank(fox, '', ['a']), /question/],
    ['an unknown order', () => model.rank(fox, 'What?', ['a'], { by: 'max' as never }), /'by' must be sum or mean/],
    ['a misspelt option', () => model.rank(fox, 'What?', ['a'], { bye: 'sum' } as never), /unknown option 'bye'/],
  ])('refuses %s', async (_, call, message) => {
    await expect(call()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) });
  });

  it('rejects with ABORTED when its signal fires', async () => {
    const controller = new AbortController();
    const ranked = model.rank(fox, 'What?', new Array<string>(400).fill('a long answer'), {
      signal: controller.signal,
    });
    controller.abort();
    await expect(ranked).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('candidates of a text model', () => {
  it('are scored without an image', async () => {
    const { json, tensors } = readFixture<{ cases: { prefix: string; greedy_ids: number[][] }[] }>(LLAMA);
    const { prefix, greedy_ids } = json.cases.find((each) => each.prefix === 'short0.')!;
    const loaded = await loadEngine(LLAMA);
    const ids = greedy_ids[0]!;
    const ranking = new Ranking(idsSequence(1, loaded.model, { ids: tensors.get(`${prefix}input_ids`)! }), [ids]);
    loaded.engine.add(ranking);
    const { logprobs } = finishAll(loaded.engine).get(1)!.candidates![0]!;
    const expected = tensors.get(`${prefix}greedy_step_logprobs`)!;
    logprobs.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(2e-3));
    expect(logprobs).toHaveLength(expected.length);
    loaded.dispose();
    expect(liveTensors()).toBe(0);
  });
});
