// Comparing images with texts through the public API, in the engine's worker: the reference's scores, equal bits alone and
// together, encoded images, cancellation, and what a checkpoint cannot do.

import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, type Embedding, type Model } from '../lib/index.js';
import { demoModel } from '../lib/package-files.js';
import { packageRoot } from '../lib/package-root.js';
import { expectDevices, inF32, testDevices } from './support/devices.js';
import { expectRejection } from './support/expect-error.js';
import { expectClose, fixturePath, readJson } from './support/fixtures.js';

expectDevices();

const root = (...parts: string[]) => join(packageRoot(), ...parts);
const fox = root('models', 'samples', 'fox_noto.png');
const panda = root('models', 'samples', 'panda_fluent.png');
const photo = (name: string) => fixturePath('emoji-eval', name);

interface Reference {
  image: string;
  scores: { text: string; itm_probability: number; itc_similarity: number }[];
}
const references = readJson<{ reference_scores: Reference[] }>('emoji-eval', 'itm.json').reference_scores;

describe.each(testDevices)('blip2-itm-tiny on %s', (device) => {
  const expected = readJson<{
    images: string[];
    texts: string[];
    itc_scores: number[][];
    itm_probabilities_match: number[][];
  }>('blip2-itm-tiny', 'expected.json');
  const images = expected.images.map((image) => fixturePath('blip2-itm-tiny', image));
  let model: Model;
  beforeAll(async () => {
    // the emulated GPU is no device of the public types
    model = await loadModel(fixturePath('blip2-itm-tiny'), inF32(device) as { device: 'cpu' });
  });
  afterAll(() => model.dispose());

  it('has the similarities of the reference, from the pictures and the texts on', async () => {
    const scores = await model.similarity(images, expected.texts);
    expectClose(scores.flat(), expected.itc_scores.flat(), { atol: 1e-4 }, 'similarities');
  });

  it('has the matching probabilities of the reference', async () => {
    const matches = await Promise.all(images.map((image) => model.match(image, expected.texts)));
    const probabilities = matches.flat().map(({ probability }) => probability);
    expectClose(probabilities, expected.itm_probabilities_match.flat(), { atol: 1e-4 }, 'probabilities');
  });
});

describe('emoji-itm', () => {
  let model: Model;
  beforeAll(async () => {
    model = await loadModel(root('models', 'emoji-itm'), { device: 'cpu' });
  });
  afterAll(() => model.dispose());

  it('says what it is', () => {
    expect(model.info).toMatchObject({
      purpose: 'retrieval',
      modelType: 'blip-2',
      supportsImages: true,
      maxContext: 128,
    });
  });

  it('reproduces every reference score, matching and contrastive, with all calls made at once', async () => {
    expect(references.length).toBe(24);
    await Promise.all(
      references.map(async ({ image, scores }) => {
        const texts = scores.map(({ text }) => text);
        const [matches, [similarities]] = await Promise.all([
          model.match(photo(image), texts),
          model.similarity([photo(image)], texts),
        ]);
        const column = (key: 'itm_probability' | 'itc_similarity') => scores.map((score) => score[key]);
        const probabilities = matches.map(({ probability }) => probability);
        // the reference is rounded to five digits
        expectClose(probabilities, column('itm_probability'), { atol: 1e-4 }, `${image}: itm`);
        expectClose(similarities!, column('itc_similarity'), { atol: 1e-4 }, `${image}: itc`);
      }),
    );
  });

  it('gives a picture and a text the same bits alone and among others', async () => {
    const alone = await model.match(fox, 'a fox');
    const together = await Promise.all([
      model.match(panda, ['a panda', '一只狐狸']),
      model.match(fox, ['a rocket on a red background', 'a fox']),
    ]);
    expect(together[1][1]).toEqual(alone);
    const [[fromMany], [single]] = await Promise.all([
      model.embed({ images: [fox, panda] }),
      model.embed({ images: [fox] }),
    ]);
    expect(fromMany).toEqual(single);
  });

  it('embeds an image as one unit vector per query, or as their mean, and a text as one', async () => {
    const length = ({ data }: Embedding, row: number) => Math.hypot(...data.subarray(row * 128, row * 128 + 128));
    const [vectors] = await model.embed({ images: [fox] });
    expect(vectors).toMatchObject({ rows: 16, dim: 128 });
    const [pooled] = await model.embed({ images: [fox] }, { pool: 'mean' });
    expect(pooled).toMatchObject({ rows: 1, dim: 128 });
    const [text] = await model.embed({ texts: ['a fox'] });
    expect(text).toMatchObject({ rows: 1, dim: 128 });
    for (const [embedding, row] of [
      [vectors!, 0],
      [vectors!, 15],
      [pooled!, 0],
      [text!, 0],
    ] as const) {
      expect(length(embedding, row)).toBeCloseTo(1, 5);
    }
    const column = Array.from({ length: 128 }, (_, i) => {
      return Array.from({ length: 16 }, (_, row) => vectors!.data[128 * row + i]!).reduce((a, b) => a + b) / 16;
    });
    const scale = 1 / Math.hypot(...column);
    expectClose(
      pooled!.data,
      column.map((value) => value * scale),
      { atol: 1e-6 },
      'the mean',
    );
  });

  it('takes an encoded image in place of a picture, with the same result, until it is disposed', async () => {
    const encoded = await model.encodeImage(fox);
    expect(await model.match(encoded, 'a fox')).toEqual(await model.match(fox, 'a fox'));
    expect(await model.similarity([encoded, panda], ['a fox'])).toEqual(
      await model.similarity([fox, panda], ['a fox']),
    );
    const waiting = model.match(encoded, ['a fox', 'a cat']);
    encoded.dispose();
    encoded.dispose();
    await waiting;
    await expectRejection(model.match(encoded, 'a fox'), 'INVALID_ARGUMENT', /disposed/);
  });

  it('computes for an encoded image without its pixels', async () => {
    const small = await loadModel(root('models', 'emoji-itm'), { device: 'cpu' });
    try {
      const encoded = await small.encodeImage(fox);
      expect((await small.match(encoded, 'a fox')).probability).toBeGreaterThan(0.5);
      await expectRejection(model.match(encoded, 'a fox'), 'INVALID_ARGUMENT', /another model/);
    } finally {
      await small.dispose();
    }
  });

  it('ends a call whose signal fires, and the others go on', async () => {
    const controller = new AbortController();
    const texts = Array.from({ length: 2000 }, (_, i) => `a fox number ${i}`);
    const running = model.match(fox, texts, { signal: controller.signal });
    const other = model.match(fox, 'a fox');
    setTimeout(() => controller.abort(), 20);
    await expectRejection(running, 'ABORTED', /was aborted/);
    expect((await other).probability).toBeGreaterThan(0.5);
    await expectRejection(model.embed({ images: [fox] }, { signal: controller.signal }), 'ABORTED', /embed/);
  });

  it.each<[string, () => Promise<unknown>, RegExp]>([
    ['a text that is too long', () => model.match(fox, 'fox '.repeat(500)), /more than the limit of 128/],
    ['an empty text', () => model.match(fox, ' '), /a text is empty/],
    ['no texts', () => model.match(fox, []), /non-empty array/],
    ['a misspelt option', () => model.match(fox, 'a fox', { singal: 1 } as object), /did you mean 'signal'/],
    [
      'images and texts at once',
      () => model.embed({ images: [fox], texts: ['a'] } as never),
      /an array of one of them/,
    ],
    ['an unknown pooling', () => model.embed({ texts: ['a'] }, { pool: 'max' as never }), /none or mean/],
  ])('refuses %s', async (_, call, message) => {
    await expectRejection(call(), 'INVALID_ARGUMENT', message);
    expect((await model.match(fox, 'a fox')).probability).toBeGreaterThan(0.5);
  });

  it('reports a picture that cannot be read', async () => {
    await expectRejection(model.similarity([fox, 'missing.png'], ['a fox']), 'IO', /missing\.png/);
  });

  it('cannot generate text', async () => {
    for (const call of [() => model.caption(fox), () => model.answer(fox, 'What?'), () => model.generate('a')]) {
      expect(call).toThrow(
        expect.objectContaining({
          code: 'UNSUPPORTED',
          message: expect.stringContaining('cannot generate text') as string,
        }),
      );
    }
  });

  it('leaves nothing behind', async () => {
    const fresh = await loadModel(root('models', 'emoji-itm'), { device: 'cpu' });
    const before = (await fresh.stats()).liveTensors;
    const encoded = await fresh.encodeImage(fox);
    await fresh.match(encoded, ['a fox', 'a cat']);
    expect((await fresh.stats()).liveTensors).toBeGreaterThan(before);
    encoded.dispose();
    await fresh.embed({ texts: ['a'] });
    // what remains is in the cache of image features
    expect((await fresh.stats()).liveTensors).toBe(before + 1);
    await fresh.dispose();
  });
});

describe('a generation model', () => {
  let model: Model;
  beforeAll(async () => {
    model = await loadModel(demoModel(), { device: 'cpu' });
  });
  afterAll(() => model.dispose());

  it('answers about an encoded image as about the picture', async () => {
    const encoded = await model.encodeImage(fox);
    const answers = await Promise.all([model.answer(encoded, 'What is this?'), model.caption(encoded)]);
    expect(answers.map(({ text }) => text)).toEqual(['This is a fox.', 'A fox on a blue background.']);
    const chat = model.chat({ images: [encoded] });
    expect((await chat.send('这是什么？')).text).toBe('这是一只狐狸。');
    encoded.dispose();
    await expectRejection(model.caption(encoded), 'INVALID_ARGUMENT', /disposed/);
  });

  it('cannot compare images with texts', async () => {
    for (const call of [
      () => model.match(fox, 'a fox'),
      () => model.similarity([fox], ['a fox']),
      () => model.embed({ texts: ['a fox'] }),
    ]) {
      await expectRejection(call(), 'UNSUPPORTED', /this checkpoint cannot compare images with texts/);
    }
  });
});

describe('a text-only model', () => {
  it('cannot encode an image', async () => {
    const model = await loadModel(fixturePath('llama-gqa-tiny'), { device: 'cpu' });
    await expectRejection(model.encodeImage(fox), 'UNSUPPORTED', /this checkpoint cannot read images/);
    await model.dispose();
  });
});
