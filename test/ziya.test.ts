// Ziya-Visual: a visual folder and a language model in another one. On every device every stage, the ids of all reference prompts
// alone and together, the three turns of the reference's chat, and what is said when the two folders do not make one model.

import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadEngine, type LoadedEngine } from '../lib/engine/execution/load.js';
import { inspect, loadModel, type Model } from '../lib/index.js';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import { loadImage } from '../lib/io/image.js';
import { readSafetensorsHeader } from '../lib/io/safetensors.js';
import type { Blip2 } from '../lib/models/blip2.js';
import { createModel } from '../lib/models/registry.js';
import { Weights } from '../lib/models/weights.js';
import { scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, inF32, isChecked, sample, testDevices } from './support/devices.js';
import { expectError, expectRejection } from './support/expect-error.js';
import { finishAll } from './support/engine-models.js';
import { expectClose, expectNoLeaks, fixturePath, Goldens, readJson } from './support/fixtures.js';
import { storedValues } from './support/models.js';
import { torchFileOf } from './support/torch-file-builder.js';
import { HIDDEN, LOGPROBS } from './support/tolerances.js';

expectDevices();

const FIXTURE = 'ziya-visual-tiny';
const visual = fixturePath(FIXTURE, 'visual');
const languageModel = fixturePath(FIXTURE, 'llm');

interface ZiyaCase {
  prefix: string;
  image: string;
  history: { human: string; bot: string | null }[];
  prompt: string;
  text_ids: number[];
  greedy_ids: number[][];
}

interface Expected {
  cases: ZiyaCase[];
  multi_turn_chat: {
    image: string;
    max_new_tokens: number;
    turns: { prompt: string; greedy_ids: number[]; answer_text_stripped: string }[];
  };
}

const { cases, multi_turn_chat: reference } = readJson<Expected>(FIXTURE, 'expected.json');
const goldens = new Goldens(FIXTURE, 'expected.safetensors');
const questionOf = (prompt: string) => /<human>: ([^\n]*)\n<bot>:$/.exec(prompt)![1]!;

describe.each(testDevices)('the two folders on %s', (device) => {
  let model: Blip2;
  beforeAll(async () => {
    const checkpoint = openCheckpoint(visual, { languageModel });
    const weights = new Weights(checkpoint, inF32(device));
    model = createModel(checkpoint, weights) as Blip2;
    await weights.load();
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it.each(sample(device, ['image0', 'image1']))('match the reference at every stage of %s', (image) => {
    scope(() => {
      const { shape } = goldens.get(`${image}.pixel_values`);
      const pixels = Tensor.fromArray(goldens.floats(`${image}.pixel_values`), shape, { device });
      const features = model.encodeImage(pixels);
      expectClose(features.toFloat32(), goldens.floats(`${image}.vision_last_hidden_state`), HIDDEN, 'vision');
      const rows = model.imageTokens(features, 1);
      expect(rows.shape).toEqual([64, 128]);
      expectClose(rows.toFloat32(), goldens.floats(`${image}.language_projection`), HIDDEN, 'projection');
    });
  });
});

describe.each(testDevices)('the engine over both folders on %s', (device) => {
  const tokens = isChecked(device) ? 4 : 24;
  let loaded: LoadedEngine;
  const pixels = new Map<string, Awaited<ReturnType<typeof loadImage>>>();
  beforeAll(async () => {
    loaded = await loadEngine({ dir: visual, languageModel, ...inF32(device), kvCacheTokens: 4096 });
    for (const { image } of cases) pixels.set(image, await loadImage(fixturePath(FIXTURE, image)));
  });
  afterAll(() => loaded.dispose());

  const expectedIds = ({ greedy_ids }: ZiyaCase) => greedy_ids[0]!.slice(0, tokens);
  const add = (id: number, { prompt, image, greedy_ids }: ZiyaCase) => {
    const params = { maxNewTokens: Math.min(tokens, greedy_ids[0]!.length), logprobs: true };
    const { engine, prompts } = loaded;
    const request = { prompt, images: [structuredClone(pixels.get(image)!)], params };
    engine!.add(prompts!.build(id, request, engine!.maxContext, 0));
  };

  it('gives the reference ids and log-probabilities one request at a time', () => {
    for (const example of sample(device, cases)) {
      add(1, example);
      const { tokenIds, usage, logprobs } = finishAll(loaded.engine!).get(1)!;
      expect(tokenIds, example.prefix).toEqual(expectedIds(example));
      expect(usage.promptTokens).toBe(64 + example.text_ids.length);
      const actual = logprobs!.map(({ logprob }) => logprob);
      const expected = goldens.floats(`${example.prefix}greedy_step_logprobs`).subarray(0, actual.length);
      expectClose(actual, expected, LOGPROBS.f32, example.prefix);
    }
  });

  it('gives them all at once', () => {
    expect(cases.length).toBe(6);
    const asked = sample(device, cases, 3);
    asked.forEach((example, id) => add(id, example));
    const results = finishAll(loaded.engine!);
    asked.forEach((example, id) => expect(results.get(id)!.tokenIds).toEqual(expectedIds(example)));
  });
});

describe.each(testDevices)('a chat on %s', (device) => {
  let model: Model;
  const image = fixturePath(FIXTURE, reference.image);
  const options = { maxNewTokens: reference.max_new_tokens };
  beforeAll(async () => {
    // the emulated GPU is no device of the public types
    const loaded = inF32(device) as { device: 'cpu' };
    model = await loadModel(visual, { languageModel, ...loaded, kvCacheTokens: 4096 });
  });
  afterAll(() => model.dispose());

  async function talk(): Promise<number[][]> {
    const chat = model.chat({ images: [image] });
    const ids: number[][] = [];
    for (const { prompt } of reference.turns) ids.push((await chat.send(questionOf(prompt), options)).tokenIds);
    return ids;
  }
  const expectedIds = reference.turns.map(({ greedy_ids }) => greedy_ids);

  it('has the ids of the reference in all its turns', async () => {
    expect(expectedIds).toHaveLength(3);
    expect(await talk()).toEqual(expectedIds);
  });

  it.skipIf(isChecked(device))('has them when three chats talk at the same time', async () => {
    expect(await Promise.all([talk(), talk(), talk()])).toEqual([expectedIds, expectedIds, expectedIds]);
  });

  it.skipIf(isChecked(device))('finds the keys and values of its earlier turns in the cache', async () => {
    const chat = model.chat({ images: [image], system: 'a system text of its own, so that nothing is cached' });
    const [first, second] = [await chat.send('What is it?', options), await chat.send('Why?', options)];
    expect(first.usage.cachedTokens % 64).toBe(0); // of the image at most
    // All of the first prompt but the last, unfinished block of 16 tokens.
    expect(second.usage.cachedTokens).toBeGreaterThanOrEqual(first.usage.promptTokens - 16);
    expect(second.usage.cachedTokens).toBeGreaterThan(64);
  });

  it.skipIf(isChecked(device))(
    'goes on from a history that was written down, and in a fork, as it would have itself',
    async () => {
      const [first, second, third] = reference.turns.map(({ prompt }) => questionOf(prompt)) as [
        string,
        string,
        string,
      ];
      const chat = model.chat({ images: [image] });
      await chat.send(first, options);
      const fork = chat.fork();
      const record = JSON.parse(JSON.stringify(chat)) as object;
      for (const each of [chat, fork, model.chat({ images: [image], ...record })]) {
        expect((await each.send(second, options)).tokenIds).toEqual(expectedIds[1]);
      }
      await fork.send(third, options);
      expect([chat.history.length, fork.history.length]).toEqual([4, 6]);
    },
  );

  it.skipIf(isChecked(device))('is left as it was by a message that the context cannot hold', async () => {
    const chat = model.chat({ images: [image] });
    await chat.send('What is it?', options);
    const before = chat.history;
    const error = await expectRejection(chat.send('word '.repeat(3000), options).then(), 'INVALID_ARGUMENT', 'limit');
    expect(error.details).toMatchObject({ maxTokens: 2048 });
    await expectRejection(chat.send('word '.repeat(660), options).then(), 'INVALID_ARGUMENT', 'leave room');
    expect(chat.history).toEqual(before);
    expect((await chat.send('Why?', options)).finishReason).not.toBe('abort');
  });
});

describe('rows of the embedding table beyond the tokenizer', () => {
  it('are never produced, however likely they look', async () => {
    await withLargeRow(async (dir) => {
      const { engine, prompts, dispose } = await loadEngine({ dir, device: 'cpu', kvCacheTokens: 512 });
      const params = { maxNewTokens: 6, ignoreEos: true };
      for (const temperature of [0, 5]) {
        engine!.add(prompts!.build(1, { prompt: '图片', params: { ...params, temperature } }, 512, 0));
        const { tokenIds } = finishAll(engine!).get(1)!;
        expect(tokenIds).toHaveLength(6);
        expect(Math.max(...tokenIds)).toBeLessThan(1002);
      }
      dispose();
    });
  });

  /** Runs `fn` on a copy of the language model whose head gives the last rows, 1002 to 1007, scores far above all others. */
  async function withLargeRow(fn: (dir: string) => Promise<void>): Promise<void> {
    const dir = mkdtempSync(join(tmpdir(), 'qformer-rows-'));
    try {
      cpSync(languageModel, dir, { recursive: true });
      const file = join(dir, 'model.safetensors');
      const bytes = readFileSync(file);
      const { tensors } = openCheckpoint(dir);
      // f16 with the norm's weights at 0 but for one channel, which then has the same sign in every row of the head
      const [head, scale] = [tensors.get('lm_head.weight')!, tensors.get('model.norm.weight')!];
      for (let i = 0; i < 128; i++) bytes.writeUInt16LE(i === 0 ? 0x3c00 : 0, scale.offset + 2 * i);
      for (let row = 0; row < 1008; row++) {
        // ±1 by turns beyond the tokenizer, so that one of the two wins whatever the channel's sign; 0 elsewhere
        const value = row < 1002 ? 0 : row % 2 === 0 ? 0x3c00 : 0xbc00;
        bytes.writeUInt16LE(value, head.offset + 2 * 128 * row);
      }
      rmSync(file);
      writeFileSync(file, bytes);
      await fn(dir);
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }
});

// Ziya-BLIP2-14B-Visual-v1: one file of PyTorch in f32, a configuration of a class of its own that says nothing reliable about the
// language model, and no settings of the image processor. LLaMA folders of its time: shards of PyTorch and SentencePiece.
describe('the two folders as they are published', () => {
  const root = mkdtempSync(join(tmpdir(), 'qformer-published-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));

  function write(folder: string, files: Record<string, object | Uint8Array>): string {
    const dir = join(root, folder);
    mkdirSync(dir);
    for (const [name, content] of Object.entries(files)) {
      writeFileSync(join(dir, name), content instanceof Uint8Array ? content : JSON.stringify(content));
    }
    return dir;
  }

  it('give the ids of the reference in all turns of a chat', async () => {
    const entries = [...readSafetensorsHeader(join(visual, 'model.safetensors')).values()];
    const published = write('visual', {
      'config.json': {
        ...readJson(FIXTURE, 'visual', 'config.json'),
        architectures: ['ZiyaBlip2ForCausalLM'],
        auto_map: { AutoModelForCausalLM: 'modeling_ziya_blip2.ZiyaBlip2ForCausalLM' },
        human_name: '<human>',
        assistant_name: '<bot>',
        prompt_prefix: '',
        text_config: {},
        torch_dtype: 'float32',
      },
      'pytorch_model.bin': torchFileOf(entries.map((entry) => ({ ...entry, values: storedValues(entry) }))),
    });
    const tokenizer = readJson(FIXTURE, 'llm', 'tokenizer_config.json');
    const llama = write('llm', {
      'tokenizer_config.json': { ...tokenizer, added_tokens_decoder: undefined },
      'added_tokens.json': { '<human>': 1000, '<bot>': 1001 },
    });
    for (const name of ['config.json', 'generation_config.json', 'special_tokens_map.json', 'tokenizer.model'])
      cpSync(join(languageModel, name), join(llama, name));
    cpSync(fixturePath('torch-files', 'llama'), llama, { recursive: true });

    const model = await loadModel(published, { languageModel: llama, device: 'cpu', kvCacheTokens: 4096 });
    const chat = model.chat({ images: [fixturePath(FIXTURE, reference.image)] });
    for (const { prompt, greedy_ids } of reference.turns) {
      const { tokenIds } = await chat.send(questionOf(prompt), { maxNewTokens: reference.max_new_tokens });
      expect(tokenIds).toEqual(greedy_ids);
    }
    await model.dispose();
  });
});

describe('another image size', () => {
  it('is read through interpolated positions', async () => {
    const request = { prompt: cases[0]!.prompt, params: { maxNewTokens: 1, logprobs: true } };
    const image = await loadImage(fixturePath(FIXTURE, cases[0]!.image));
    const logprob = async (imageSize?: number): Promise<number> => {
      const loaded = await loadEngine({ dir: visual, languageModel, device: 'cpu', kvCacheTokens: 512, imageSize });
      const { engine, prompts } = loaded;
      engine!.add(prompts!.build(1, { ...request, images: [structuredClone(image)] }, 512, 0));
      const result = finishAll(engine!).get(1)!;
      loaded.dispose();
      return result.logprobs![0]!.logprob;
    };
    const [own, same, larger] = [await logprob(), await logprob(56), await logprob(98)];
    expect(same).toBe(own);
    expect(larger).not.toBe(own);
    expect(Number.isFinite(larger)).toBe(true);
  });

  it('is refused where it is smaller than a patch, and for a model that reads no images', async () => {
    const small = loadEngine({ dir: visual, languageModel, device: 'cpu', imageSize: 13 });
    await expectRejection(small, 'INVALID_ARGUMENT', 'imageSize must be at least 14 pixels, got 13');
    const textual = loadEngine({ dir: languageModel, device: 'cpu', imageSize: 56 });
    await expectRejection(textual, 'INVALID_ARGUMENT', 'reads no images');
  });
});

describe('two folders', () => {
  it('are one checkpoint to whoever describes it', () => {
    const { parts, tensors, bytes, files } = inspect(visual, { languageModel });
    expect(parts.map(({ part }) => part)).toEqual(['vision encoder', 'Q-Former', 'projection', 'language model']);
    expect(tensors).toBe(131 + 30);
    expect(files).toHaveLength(2);
    const alone = inspect(languageModel);
    expect(parts.at(-1)!.bytes).toBe(alone.bytes);
    expect(bytes).toBeGreaterThan(alone.bytes);
  });
});

describe('folders that do not make one model', () => {
  const load = (dir: string, language?: string) => openCheckpoint(dir, { languageModel: language });

  it('are refused where the visual part is alone, saying how to give the other', async () => {
    const error = expectError(() => load(visual), 'INVALID_ARGUMENT', 'loadModel(dir, { languageModel:');
    expect(error.message).toContain('--language-model DIR');
    await expectRejection(loadModel(visual, { device: 'cpu' }), 'INVALID_ARGUMENT', 'visual part');
  });

  it('are refused by the architecture’s name before anything else of config.json is believed', () => {
    withConfig(visual, { architectures: ['ZiyaBlip2ForCausalLM'], text_config: { model_type: 'gpt2' } }, (dir) => {
      expectError(() => load(dir), 'INVALID_ARGUMENT', 'visual part');
      const { config } = load(dir, languageModel);
      expect(config.text.hiddenSize).toBe(128);
      expect(config.chatNames).toEqual({ human: '<human>', assistant: '<bot>', prefix: '' });
    });
  });

  it('are refused where the first has a language model of its own', () => {
    const whole = fixturePath('instructblip-vicuna-tiny');
    expectError(() => load(whole, languageModel), 'INVALID_ARGUMENT', 'has a language model of its own');
    expectError(() => load(languageModel, languageModel), 'INVALID_ARGUMENT', 'has a language model of its own');
  });

  it('are refused where the second is no language model alone', () => {
    const whole = fixturePath('instructblip-vicuna-tiny');
    expectError(() => load(visual, whole), 'INVALID_ARGUMENT', 'holds a whole instructblip model');
    expectError(() => load(visual, join(languageModel, 'absent')), 'IO', 'no such folder');
  });

  it('are refused where the projection does not fit', () => {
    withConfig(languageModel, { hidden_size: 64 }, (other) => {
      const { details } = expectError(() => load(visual, other), 'SHAPE', 'projects images to 128 channels');
      expect(details).toEqual({ projected: 128, hiddenSize: 64 });
    });
  });

  it('are refused for a retrieval model', async () => {
    const options = { languageModel, device: 'cpu' } as const;
    await expectRejection(loadModel(fixturePath('blip2-itm-tiny'), options), 'INVALID_ARGUMENT', 'no language model');
  });

  it('take the names of the two sides from config.json', () => {
    withConfig(visual, { human_name: '<user>', assistant_name: '<me>', prompt_prefix: 'Hi. ' }, (dir) => {
      expect(load(dir, languageModel).config.chatNames).toEqual({ human: '<user>', assistant: '<me>', prefix: 'Hi. ' });
    });
  });
});

/** Runs `fn` on a copy of `folder` whose config.json has other entries too. */
function withConfig(folder: string, entries: object, fn: (dir: string) => void): void {
  const dir = mkdtempSync(join(tmpdir(), 'qformer-ziya-'));
  try {
    cpSync(folder, dir, { recursive: true });
    const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as object;
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, ...entries }));
    fn(dir);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
