// The whole way from image to answer with the demonstration model, in the engine's worker.

import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, type GenerationResult, type LoadProgress, type Model } from '../lib/index.js';
import { demoModel } from '../lib/package-files.js';
import { packageRoot } from '../lib/package-root.js';

const sample = (name: string) => join(packageRoot(), 'models', 'samples', name);
const fox = sample('fox_noto.png');
const samples = JSON.parse(readFileSync(sample('samples.json'), 'utf8')) as {
  image: string;
  answers: [string, string][];
}[];
const questions = samples.flatMap(({ image, answers }) =>
  answers.map(([question, answer]) => ({ image, question, answer })),
);
const code = (expected: string) => expect.objectContaining({ name: 'QFormerError', code: expected });

let model: Model;
beforeAll(async () => {
  model = await loadModel(demoModel());
});
afterAll(async () => {
  const { liveTensors: before } = await model.stats();
  await model.dispose();
  expect(before).toBeGreaterThan(0);
});

describe('the demonstration model', () => {
  it.each(questions)('answers "$question" about $image', async ({ image, question, answer }) => {
    expect((await model.answer(sample(image), question)).text).toBe(answer);
  });

  it('gives the same answers when all questions are asked at once', async () => {
    const results = await Promise.all(questions.map(({ image, question }) => model.answer(sample(image), question)));
    expect(results.map(({ text }) => text)).toEqual(questions.map(({ answer }) => answer));
  });

  it('captions in both languages', async () => {
    expect(model.captionLanguages).toEqual(['en', 'zh']);
    expect((await model.caption(fox)).text).toBe('A fox on a blue background.');
    expect((await model.caption(fox, { lang: 'zh' })).text).toBe('蓝色背景上的一只狐狸。');
  });

  it('says what is loaded', () => {
    expect(model.info).toMatchObject({
      modelType: 'instructblip',
      device: 'cpu',
      supportsImages: true,
      maxContext: 512,
    });
    expect(model.info.weightBytes).toBeGreaterThan(15e6);
  });
});

describe('a request', () => {
  it('streams whole characters that make up the text', async () => {
    const generation = model.answer(fox, '描述这张图片。');
    const pieces: string[] = [];
    const ids: number[] = [];
    for await (const { text, tokenIds } of generation) {
      pieces.push(text);
      ids.push(...tokenIds);
    }
    const result = await generation;
    expect(pieces.filter((piece) => piece !== '').length).toBeGreaterThan(2);
    expect(pieces.join('')).toBe(result.text);
    expect(ids).toEqual(result.tokenIds);
    for (const piece of pieces) expect(piece).not.toContain('\uFFFD');
  });

  it('takes an image in every form, with the same answer', async () => {
    const bytes = await readFile(fox);
    const url = `data:image/png;base64,${bytes.toString('base64')}`;
    const forms = [
      fox,
      pathToFileURL(fox),
      pathToFileURL(fox).href,
      url,
      bytes,
      new Uint8Array(bytes),
      new Blob([new Uint8Array(bytes)]),
    ];
    const results = await Promise.all(forms.map((form) => model.answer(form, 'What is this?')));
    for (const { text } of results) expect(text).toBe('This is a fox.');
  });

  it('takes an image of one pixel', async () => {
    const pixel = { data: new Uint8Array([200, 10, 10]), width: 1, height: 1, channels: 3 as const };
    expect((await model.answer(pixel, 'What is this?')).tokenIds.length).toBeGreaterThan(0);
  });

  it('reports tokens and times', async () => {
    const { usage, timings, tokenIds } = await model.answer(sample('panda_fluent.png'), 'What category is it?');
    expect(usage.imageTokens).toBe(16);
    expect(usage.completionTokens).toBe(tokenIds.length);
    expect(timings.totalMs).toBeGreaterThanOrEqual(timings.timeToFirstTokenMs);
    expect(timings.timeToFirstTokenMs).toBeGreaterThan(0);
  });

  it('stops at its limit, or before a stop string', async () => {
    const short = await model.answer(fox, 'What is this?', { maxNewTokens: 2 });
    expect(short).toMatchObject({ finishReason: 'length', usage: { completionTokens: 2 } });
    const stopped = await model.answer(fox, 'What is this?', { stop: ' fox' });
    expect(stopped).toMatchObject({ text: 'This is a', finishReason: 'stop' });
  });

  it('gives log-probabilities of each token when asked', async () => {
    const { logprobs, tokenIds } = await model.answer(fox, 'What is this?', { logprobs: 3 });
    expect(logprobs!.map(({ tokenId }) => tokenId)).toEqual(tokenIds);
    for (const { logprob, top, tokenId } of logprobs!) {
      expect(logprob).toBeLessThanOrEqual(0);
      expect(top).toHaveLength(3);
      // Greedy takes the most likely one.
      expect(top![0]).toEqual({ tokenId, logprob });
    }
  });

  it('samples the same with the same seed, and something else with other seeds', async () => {
    const ask = (seed: number) => model.answer(fox, 'Describe the image.', { temperature: 3, seed, maxNewTokens: 12 });
    const [a, b, ...others] = await Promise.all([1, 1, 2, 3, 4].map(ask));
    expect(b!.tokenIds).toEqual(a!.tokenIds);
    expect(a!.seed).toBe(1);
    expect(others.some(({ text }) => text !== a!.text)).toBe(true);
  });

  it('reports a seed that repeats it', async () => {
    const first = await model.answer(fox, 'Describe the image.', { topP: 0.99, maxNewTokens: 12 });
    const again = await model.answer(fox, 'Describe the image.', { topP: 0.99, maxNewTokens: 12, seed: first.seed });
    expect(again.tokenIds).toEqual(first.tokenIds);
  });

  it('takes its prompt as token ids too', async () => {
    const text = await model.generate('What is this?', { image: fox });
    expect(text.text).toBe('This is a fox.');
    await expect(model.generate([1, 99_999], { image: fox })).rejects.toEqual(code('INVALID_ARGUMENT'));
  });

  it.each<[string, () => PromiseLike<GenerationResult>]>([
    ['a prompt beyond the context', () => model.answer(fox, 'fox '.repeat(2000))],
    ['half a surrogate pair', () => model.answer(fox, 'What is \ud83d?')],
    ['an image path that is a folder', () => model.answer(packageRoot(), 'What is this?')],
    ['a text file as image', () => model.answer(join(packageRoot(), 'package.json'), 'What is this?')],
    ['an http URL that was not allowed', () => model.answer('http://localhost/fox.png', 'What is this?')],
    ['pixels that are too few', () => model.caption({ data: new Uint8Array(5), width: 2, height: 1, channels: 3 })],
    ['something that is no image', () => model.caption(42 as never)],
  ])('with %s rejects with a typed error and leaves others alone', async (_what, ask) => {
    const good = model.answer(fox, 'What is this?');
    const error = await ask().then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toMatchObject({
      name: 'QFormerError',
      code: expect.stringMatching(/^(INVALID_ARGUMENT|IO|FORMAT)$/),
    });
    expect((await good).text).toBe('This is a fox.');
  });

  it('leaves nothing behind when it is aborted at any moment', async () => {
    const controllers = Array.from({ length: 12 }, () => new AbortController());
    const running = controllers.map(({ signal }, i) =>
      model.answer(fox, 'What is this?', { signal, maxNewTokens: 100, ignoreEos: true, seed: i }),
    );
    controllers.forEach((controller, i) => setTimeout(() => controller.abort(), i * 3));
    const outcomes = await Promise.allSettled(running);
    expect(outcomes.some(({ status }) => status === 'rejected')).toBe(true);
    expect((await model.answer(fox, 'What is this?')).text).toBe('This is a fox.');
    expect(await model.stats()).toMatchObject({ running: 0, waiting: 0 });
  });
});

describe('a chat', () => {
  it('asks about its image turn by turn', async () => {
    const chat = model.chat({ images: [fox] });
    expect((await chat.send('What is this?')).text).toBe('This is a fox.');
    expect((await chat.send('这是什么？')).text).toBe('这是一只狐狸。');
    expect(chat.history).toHaveLength(4);
  });
});

describe('loading', () => {
  it('reports its progress in order', async () => {
    const seen: LoadProgress[] = [];
    const loaded = await loadModel(demoModel(), { onProgress: (progress) => seen.push(progress) });
    await loaded.dispose();
    const phases = ['open', 'weights', 'ready'];
    expect(seen.map(({ phase }) => phases.indexOf(phase))).toEqual(
      seen.map(({ phase }) => phases.indexOf(phase)).sort(),
    );
    expect(seen.at(-1)).toMatchObject({ phase: 'ready' });
    expect(seen.at(-1)!.loaded).toBe(seen.at(-1)!.total);
    for (let i = 1; i < seen.length; i++) expect(seen[i]!.loaded).toBeGreaterThanOrEqual(seen[i - 1]!.loaded);
  });

  it('that is aborted rejects with ABORTED, whenever that happens', async () => {
    for (const phase of ['open', 'weights', 'ready']) {
      const controller = new AbortController();
      const onProgress = (progress: LoadProgress) => progress.phase === phase && controller.abort('stop');
      await expect(loadModel(demoModel(), { signal: controller.signal, onProgress })).rejects.toEqual(code('ABORTED'));
    }
    await expect(loadModel(demoModel(), { signal: AbortSignal.abort() })).rejects.toEqual(code('ABORTED'));
  });

  it.each([
    ['no-such-folder', 'IO'],
    [join(packageRoot(), 'package.json'), 'IO'],
    [packageRoot(), 'IO'],
  ])('%s rejects with %s', async (dir, expected) => {
    await expect(loadModel(dir)).rejects.toEqual(code(expected));
  });

  it('for a device that is not there rejects with DEVICE or UNSUPPORTED and says why', async () => {
    await expect(loadModel(demoModel(), { device: 'cuda' })).rejects.toMatchObject({
      code: expect.stringMatching(/^(DEVICE|UNSUPPORTED)$/),
      message: expect.stringMatching(/cuda/i),
    });
  });

  it('two models at once keeps them apart', async () => {
    const dir = join(packageRoot(), 'test', 'fixtures', 'llama-gqa-tiny');
    const text = await loadModel(dir);
    const [fromImage, fromText] = await Promise.all([
      model.answer(fox, 'What is this?'),
      text.generate('Once', { maxNewTokens: 5, ignoreEos: true }),
    ]);
    expect(fromImage.text).toBe('This is a fox.');
    expect(fromText.tokenIds).toHaveLength(5);
    await text.dispose();
    expect((await model.answer(fox, 'What is this?')).text).toBe('This is a fox.');
  });

  it('and disposing while generating rejects the requests with ABORTED', async () => {
    const other = await loadModel(demoModel());
    const running = [1, 2, 3].map(() => other.answer(fox, 'What is this?', { maxNewTokens: 400, ignoreEos: true }));
    for await (const _ of running[0]!) {
      void other.dispose();
      break;
    }
    await other.dispose();
    for (const outcome of await Promise.allSettled(running.slice(1))) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ABORTED' } });
    }
  });
});
