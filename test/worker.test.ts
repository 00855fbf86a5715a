// The whole engine in its worker thread: text in, text out, as the references have it; bad requests; cancellation; shutdown.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EngineClient } from '../lib/engine/client.js';
import type { EngineRequest, FromWorker, RequestImage, ToWorker, WorkerInit } from '../lib/engine/protocol.js';
import { inspect } from '../lib/inspect.js';
import { fixturePath, readImage } from './support/engine-models.js';
import { ask, bundle, startClient, type Streamed } from './support/engine-worker.js';
import { readFixture } from './support/safetensors-fixture.js';

const VICUNA = fixturePath('instructblip-vicuna-tiny');
const LLAMA = fixturePath('llama-gqa-tiny');

interface FixtureCase {
  prefix: string;
  image?: string;
  prompt: string | null;
  greedy_ids: number[][];
  greedy_text: string[];
}

const casesOf = (name: string): FixtureCase[] =>
  readFixture<{ cases: FixtureCase[] }>(name).json.cases.filter(
    ({ prefix, prompt }) => /^(?!opt_)\w+\d\.$/.test(prefix) && prompt,
  );

let worker: ReturnType<typeof bundle>;
beforeAll(() => {
  worker = bundle('lib/engine/worker.ts');
});
afterAll(() => worker.remove());

async function image(name: string, dir = VICUNA): Promise<RequestImage> {
  const { data, width, height } = await readImage(`${dir}/${name}`);
  return { data, width, height };
}

async function closed(client: EngineClient): Promise<void> {
  expect(await client.close()).toEqual({ liveTensors: 0 });
}

describe('answers of the reference', () => {
  it.each([
    ['llama-gqa-tiny', LLAMA],
    ['instructblip-vicuna-tiny', VICUNA],
    ['blip2-opt-tiny', fixturePath('blip2-opt-tiny')],
    ['blip2-flant5-tiny', fixturePath('blip2-flant5-tiny')],
    ['instructblip-flant5-tiny', fixturePath('instructblip-flant5-tiny')],
  ])('%s gives its texts, all requests at once, streamed and whole', async (name, dir) => {
    const client = await startClient(worker.url, dir);
    const cases = casesOf(name);
    expect(cases.length).toBeGreaterThanOrEqual(3);
    const answers = await Promise.all(
      cases.map(async ({ image: file, prompt, greedy_ids }) => {
        const images = file === undefined ? [] : [await image(file, dir)];
        return ask(client, { prompt: prompt!, images, params: { maxNewTokens: greedy_ids[0]!.length } });
      }),
    );
    answers.forEach(({ result, text, tokenIds }, i) => {
      expect(result.tokenIds).toEqual(cases[i]!.greedy_ids[0]);
      expect(result.text).toBe(cases[i]!.greedy_text[0]);
      expect(text).toBe(result.text);
      expect(tokenIds).toEqual(result.tokenIds);
      expect(result.finishReason).toBe('length');
    });
    await closed(client);
  });

  it('are the same from a legacy checkpoint, which has no id for image rows', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'qformer-legacy-'));
    try {
      cpSync(VICUNA, dir, { recursive: true });
      const config = JSON.parse(readFileSync(join(VICUNA, 'config.json'), 'utf8')) as Record<string, unknown>;
      delete config.image_token_index;
      writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
      const client = await startClient(worker.url, dir);
      expect(client.info.config).not.toHaveProperty('imageTokenId');
      for (const { prompt, image: file, greedy_ids } of casesOf('instructblip-vicuna-tiny')) {
        const params = { maxNewTokens: greedy_ids[0]!.length };
        const { result } = await ask(client, { prompt: prompt!, images: [await image(file!)], params });
        expect(result.tokenIds).toEqual(greedy_ids[0]);
        expect(result.usage.imageTokens).toBe(8);
      }
      await closed(client);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  it('an instruction longer than the Q-Former reads loses its beginning, not the request', async () => {
    const client = await startClient(worker.url, VICUNA);
    const request = {
      prompt: 'What?',
      images: [await image('images/img0.png')],
      params: { maxNewTokens: 3, logprobs: true },
    };
    const tail = 'image '.repeat(70);
    const long = await ask(client, { ...request, instruction: `fox ${tail}` });
    const same = await ask(client, { ...request, instruction: `dog ${tail}` });
    const other = await ask(client, { ...request, instruction: `${tail} fox` });
    expect(same.result.logprobs).toEqual(long.result.logprobs);
    expect(other.result.logprobs).not.toEqual(long.result.logprobs);
    await closed(client);
  });

  it('drawn with one seed are repeated, with another they differ', async () => {
    const client = await startClient(worker.url, LLAMA);
    const draw = async (seed: number): Promise<string> =>
      (await ask(client, { prompt: 'A', params: { temperature: 1.5, seed, maxNewTokens: 12 } })).text;
    const first = await draw(7);
    expect(await draw(7)).toBe(first);
    // The high word of the seed counts as well.
    expect(new Set([first, await draw(8), await draw(7 + 2 ** 40)]).size).toBe(3);
    await closed(client);
  });

  it('stop at another end token when the checkpoint names one', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'qformer-eos-'));
    try {
      cpSync(VICUNA, dir, { recursive: true });
      const config = JSON.parse(readFileSync(join(VICUNA, 'config.json'), 'utf8')) as { text_config: object };
      config.text_config = { ...config.text_config, eos_token_id: [2, 449] };
      writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
      const client = await startClient(worker.url, dir);
      const [first] = casesOf('instructblip-vicuna-tiny');
      const { result } = await ask(client, { prompt: first!.prompt!, images: [await image(first!.image!)] });
      expect(result).toMatchObject({ finishReason: 'stop', tokenIds: [557, 663, 706, 250, 449] });
      await closed(client);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

/** 64 requests: pictures or none, prompts of different length, every kind of option. */
async function mixedRequests(): Promise<EngineRequest[]> {
  const images = [await image('images/img0.png'), await image('images/img1.png')];
  const words = ['What', 'is', 'unusual', 'about', 'this', 'image', '图', '片', 'A', 'fox'];
  return Array.from({ length: 64 }, (_, i) => {
    const prompt = Array.from({ length: 1 + ((i * 7) % 23) }, (_, j) => words[(i * 3 + j) % words.length]).join(' ');
    return {
      prompt,
      images: i % 3 === 2 ? [] : [images[i % 2]!],
      params: {
        maxNewTokens: 1 + ((i * 5) % 40),
        seed: i,
        ...(i % 4 === 1 && { temperature: 0.5 + (i % 7) / 5, topK: (i * 3) % 50, topP: 0.8 + (i % 3) / 10 }),
        ...(i % 5 === 2 && { repetitionPenalty: 1.3 }),
        ...(i % 6 === 3 && { noRepeatNgramSize: 2 }),
        ...(i % 7 === 4 && { stop: ['a', '图'] }),
        ...(i % 8 === 5 && { badWords: ['image', 'fox'], minNewTokens: 1 }),
        ...(i % 9 === 6 && { logprobs: 2 }),
      },
    };
  });
}

describe('64 concurrent requests', () => {
  it.each([
    ['a roomy pool', {}],
    ['a pool that makes them preempt each other', { kvCacheTokens: 128, maxBatchSize: 8, maxStepTokens: 24 }],
  ])('give byte for byte what they give one by one, in %s', async (_, options) => {
    const requests = await mixedRequests();
    const alone = await startClient(worker.url, VICUNA, { prefixCache: false });
    const expected: Streamed[] = [];
    for (const request of requests) expected.push(await ask(alone, request));
    await closed(alone);
    const client = await startClient(worker.url, VICUNA, options);
    const answers = await Promise.all(requests.map((request) => ask(client, request)));
    answers.forEach(({ result, text, tokenIds }, i) => {
      const want = expected[i]!.result;
      expect({ text, tokenIds, reason: result.finishReason, logprobs: result.logprobs }).toEqual({
        text: want.text,
        tokenIds: want.tokenIds,
        reason: want.finishReason,
        logprobs: want.logprobs,
      });
    });
    const stats = await client.stats();
    expect(stats).toMatchObject({ blocksInUse: 0, waiting: 0, running: 0 });
    if ('kvCacheTokens' in options) expect(stats.preemptions).toBeGreaterThan(0);
    await closed(client);
  });
});

describe('a bad request', () => {
  let client: EngineClient;
  let picture: RequestImage;
  beforeAll(async () => {
    client = await startClient(worker.url, VICUNA);
    picture = await image('images/img0.png');
  });
  afterAll(() => closed(client));

  it.each<[string, (picture: RequestImage) => EngineRequest, RegExp]>([
    ['an empty prompt', () => ({ prompt: '' }), /prompt is empty/],
    ['no ids', () => ({ prompt: [] }), /prompt is empty/],
    ['a prompt beyond the context', () => ({ prompt: 'word '.repeat(3000) }), /tokens|limit/],
    ['ids beyond the context', () => ({ prompt: new Array<number>(2048).fill(5) }), /context/],
    ['an id outside the vocabulary', () => ({ prompt: [1, 1002] }), /1002/],
    ['a prompt that is no text', () => ({ prompt: 7 as unknown as string }), /prompt/],
    ['invalid UTF-16', () => ({ prompt: 'a\ud800b' }), /UTF-16|surrogate/],
    ['a misspelt option', () => ({ prompt: 'a', params: { maxTokens: 3 } as never }), /maxTokens/],
    ['too few pixels', (p) => ({ prompt: 'a', images: [{ ...p, width: p.width + 1 }] }), /bytes/],
    ['a picture without size', (p) => ({ prompt: 'a', images: [{ ...p, height: 0 }] }), /size/],
    ['a placeholder too few', (p) => ({ prompt: [1001, 5], images: [p] }), /placeholder/],
    ['placeholders without a picture', () => ({ prompt: [1001, 5] }), /placeholder/],
  ])('%s is refused by name, and the engine goes on', async (_, make, message) => {
    const others = ask(client, { prompt: 'fox', params: { maxNewTokens: 4 } });
    await expect(client.submit(make(picture)).done).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message });
    expect((await others).result.tokenIds).toHaveLength(4);
  });

  it('a picture for a text-only model is UNSUPPORTED', async () => {
    const llama = await startClient(worker.url, LLAMA);
    const request = { prompt: 'a', images: [picture] };
    await expect(llama.submit(request).done).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    await closed(llama);
  });
});

describe('pictures', () => {
  it('without a prompt, of one pixel and of extreme shape are answered', async () => {
    const client = await startClient(worker.url, VICUNA);
    const shapes = [
      [1, 1],
      [1, 500],
      [300, 2],
    ] as const;
    for (const [width, height] of shapes) {
      const data = new Uint8Array(width * height * 3).fill(99);
      const { result } = await ask(client, {
        prompt: '',
        images: [{ data, width, height }],
        params: { maxNewTokens: 3 },
      });
      expect(result.usage).toMatchObject({ promptTokens: 9, imageTokens: 8, completionTokens: 3 });
    }
    await closed(client);
  });

  it('asked about again come from the prefix cache', async () => {
    const client = await startClient(worker.url, VICUNA);
    const request = { prompt: 'What is unusual about this image?', images: [await image('images/img0.png')] };
    const first = await ask(client, request);
    const again = await ask(client, request);
    expect(first.result.usage.cachedTokens).toBe(0);
    expect(again.result.usage.cachedTokens).toBe(16);
    expect(again.text).toBe(first.text);
    await closed(client);
  });

  it('are moved, not copied, when asked', async () => {
    const client = await startClient(worker.url, VICUNA);
    const picture = await image('images/img0.png');
    const request = { prompt: 'a', images: [picture], params: { maxNewTokens: 1 } };
    await client.submit(request).done;
    expect(picture.data.length).toBeGreaterThan(0);
    await client.submit(request, { transferImages: true }).done;
    expect(picture.data.length).toBe(0);
    await closed(client);
  });
});

describe('cancellation', () => {
  it('ends a running request with what it has and leaves the others alone', async () => {
    const client = await startClient(worker.url, LLAMA, { prefixCache: false });
    const long = { prompt: 'The quick brown fox', params: { maxNewTokens: 2000, ignoreEos: true } };
    const short = { prompt: 'A', params: { maxNewTokens: 60, ignoreEos: true } };
    const expected = await ask(client, short);
    let seen = 0;
    const handle = client.submit(long, { onDelta: () => ++seen === 5 && handle.abort() });
    const other = ask(client, short);
    const result = await handle.done;
    expect(result.finishReason).toBe('abort');
    expect(result.tokenIds.length).toBeGreaterThanOrEqual(5);
    expect(result.tokenIds.length).toBeLessThan(2000);
    expect((await other).text).toBe(expected.text);
    expect(await client.stats()).toMatchObject({ blocksInUse: 0, running: 0, waiting: 0 });
    await closed(client);
  });

  it('of everything by close() rejects with ABORTED and leaves no tensor', async () => {
    const client = await startClient(worker.url, LLAMA);
    const handles = Array.from({ length: 20 }, () =>
      client.submit({ prompt: 'A', params: { maxNewTokens: 2000, ignoreEos: true } }),
    );
    await new Promise((resolve) => setTimeout(resolve, 30));
    await closed(client);
    for (const { done } of handles) await expect(done).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('loading', () => {
  it.each([
    ['a missing folder', { dir: '/nowhere/at/all' }, 'IO'],
    ['an unknown device', { device: 'cuda:77' }, 'DEVICE'],
    ['a pool without size', { kvCacheTokens: 0 }, 'INVALID_ARGUMENT'],
    ['half a thread', { threads: 0.5 }, 'INVALID_ARGUMENT'],
    ['an unknown dtype', { dtype: 'int3' as 'f32' }, 'INVALID_ARGUMENT'],
  ])('%s fails with its code', async (_, options, code) => {
    await expect(startClient(worker.url, LLAMA, options)).rejects.toMatchObject({ code });
  });

  it('reports progress in bytes up to the whole', async () => {
    const seen: [string, number, number][] = [];
    const client = await startClient(worker.url, LLAMA, {
      onProgress: ({ phase, loaded, total }) => seen.push([phase, loaded, total]),
    });
    const { bytes } = inspect(LLAMA);
    expect(seen[0]).toEqual(['open', 0, bytes]);
    expect(seen.at(-1)).toEqual(['ready', bytes, bytes]);
    const loaded = seen.map(([, bytes]) => bytes);
    expect([...loaded].sort((a, b) => a - b)).toEqual(loaded);
    await closed(client);
  });

  it('two models at once serve their own requests', async () => {
    const clients = await Promise.all([startClient(worker.url, LLAMA), startClient(worker.url, VICUNA)]);
    const request = { prompt: 'The quick brown fox', params: { maxNewTokens: 8 } };
    const together = await Promise.all(clients.map((client) => ask(client, request)));
    for (const [i, client] of clients.entries()) expect((await ask(client, request)).text).toBe(together[i]!.text);
    expect(together[0]!.text).not.toBe(together[1]!.text);
    for (const client of clients) await closed(client);
  });
});

it('NaN weights are that request’s FORMAT error, and the worker stays', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'qformer-nan-'));
  try {
    cpSync(LLAMA, dir, { recursive: true });
    const file = join(dir, 'model.safetensors');
    const bytes = readFileSync(file);
    const headerLength = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<
      string,
      { data_offsets: number[] }
    >;
    const [from, to] = header['model.norm.weight']!.data_offsets as [number, number];
    bytes.fill(0xff, 8 + headerLength + from, 8 + headerLength + to); // bf16 0xffff is a NaN
    writeFileSync(file, bytes);
    const client = await startClient(worker.url, dir);
    for (const temperature of [0, 1]) {
      const { done } = client.submit({ prompt: 'A', params: { temperature } });
      await expect(done).rejects.toMatchObject({ code: 'FORMAT', message: /NaN/ });
    }
    expect(await client.stats()).toMatchObject({ blocksInUse: 0 });
    await closed(client);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

it('a worker that is terminated at any moment takes nothing else down', async () => {
  const client = await startClient(worker.url, LLAMA);
  const request = { prompt: 'The quick brown fox', params: { maxNewTokens: 30 } };
  const expected = await ask(client, request);
  const workerData: WorkerInit = { options: { dir: LLAMA, device: 'cpu' }, abortFlag: new SharedArrayBuffer(4) };
  for (let round = 0; round < 12; round++) {
    const victim = new Worker(worker.url, { workerData });
    if (round % 4 > 0) {
      await new Promise<void>((resolve) => {
        victim.on('message', ({ type }: FromWorker) => {
          if (type === 'ready')
            victim.postMessage({
              type: 'request',
              id: 1,
              request: { ...request, params: { maxNewTokens: 2000 } },
            } satisfies ToWorker);
          if (type === (round % 4 === 1 ? 'ready' : 'step')) resolve();
        });
      });
    }
    await new Promise((resolve) => setTimeout(resolve, 7 * (round % 3)));
    await victim.terminate();
  }
  expect((await ask(client, request)).text).toBe(expected.text);
  await closed(client);
});
