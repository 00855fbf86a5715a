// Checkpoint folders: the stored ones, single and sharded, and every way in which a folder or its index can be wrong.

import { cpSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterAll, describe, expect, test } from 'vitest';

import { openCheckpoint } from '../lib/io/checkpoint.js';
import { expectError } from './support/expect-error.js';
import { buildSafetensors, type BuiltTensor } from './support/safetensors-builder.js';

const root = mkdtempSync(join(tmpdir(), 'qformer-checkpoint-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const fixture = (name: string) => fileURLToPath(new URL(`./fixtures/${name}`, import.meta.url));
const f32 = (...shape: number[]): BuiltTensor => ({ dtype: 'F32', shape, bytes: shape.reduce((a, b) => a * b, 4) });
const LLAMA = { model_type: 'llama', vocab_size: 10, eos_token_id: 7 };
const BLIP2 = { model_type: 'blip-2', text_config: { model_type: 'llama', eos_token_id: 7 } };
const INDEX = 'model.safetensors.index.json';

let count = 0;
/** A new folder with the given files: objects become JSON. */
function folder(files: Record<string, object | Uint8Array | string>): string {
  const dir = join(root, `case-${count++}`);
  mkdirSync(dir);
  for (const [name, content] of Object.entries(files)) {
    const data = typeof content === 'string' || content instanceof Uint8Array ? content : JSON.stringify(content);
    writeFileSync(join(dir, name), data);
  }
  return dir;
}

const weights = () => buildSafetensors({ 'model.norm.weight': f32(3) });
const sharded = (weight_map: unknown, shards: Record<string, Record<string, BuiltTensor>>) =>
  folder({
    'config.json': LLAMA,
    [INDEX]: { metadata: {}, weight_map },
    ...Object.fromEntries(Object.entries(shards).map(([name, tensors]) => [name, buildSafetensors(tensors)])),
  });

describe('a checkpoint folder', () => {
  test('of InstructBLIP opens with everything a runtime needs', () => {
    const checkpoint = openCheckpoint(fixture('instructblip-vicuna-tiny'));
    expect(checkpoint.config.modelType).toBe('instructblip');
    expect(checkpoint.tensors.size).toBe(187);
    expect(checkpoint.bytes).toBe(4267808);
    expect(checkpoint.files).toEqual([join(checkpoint.dir, 'model.safetensors')]);
    expect(checkpoint.preprocessor!.imageSize).toBe(56);
    expect(checkpoint.generation).toEqual({ eosTokenIds: [2], bosTokenId: 1, padTokenId: 1000 });
    expect(checkpoint.qformerTokenizerDir).toBe(join(checkpoint.dir, 'qformer_tokenizer'));
  });

  test('of a bare LLaMA has no image processor and no second tokenizer', () => {
    const checkpoint = openCheckpoint(fixture('llama-gqa-tiny'));
    expect(checkpoint.preprocessor).toBeUndefined();
    expect(checkpoint.qformerTokenizerDir).toBeUndefined();
    expect([...checkpoint.tensors.values()].every(({ dtype }) => dtype === 'BF16')).toBe(true);
  });

  test('with shards is their union, and real shard files may be links', () => {
    const dir = sharded(
      { a: 'model-1-of-2.safetensors', b: 'model-2-of-2.safetensors', c: 'model-1-of-2.safetensors' },
      { 'model-1-of-2.safetensors': { a: f32(1), c: f32(257) } },
    );
    const blob = join(root, 'blob');
    writeFileSync(blob, buildSafetensors({ b: f32(2, 3) }));
    symlinkSync(blob, join(dir, 'model-2-of-2.safetensors'));
    const { tensors, files, bytes } = openCheckpoint(dir);
    expect([...tensors.keys()].sort()).toEqual(['a', 'b', 'c']);
    expect(files).toHaveLength(2);
    expect(bytes).toBe(4 * (1 + 257 + 6));
  });

  test('with both a single file and an index uses the single file', () => {
    const dir = folder({
      'config.json': LLAMA,
      'model.safetensors': weights(),
      [INDEX]: { weight_map: { x: 'gone.safetensors' } },
    });
    expect([...openCheckpoint(dir).tensors.keys()]).toEqual(['model.norm.weight']);
  });

  test('takes the vocabulary from the embedding tensor and keeps what the config says', () => {
    const file = buildSafetensors({ 'model.embed_tokens.weight': f32(64, 8) });
    const { text } = openCheckpoint(folder({ 'config.json': LLAMA, 'model.safetensors': file })).config;
    expect([text.vocabSize, text.configVocabSize]).toEqual([64, 10]);
  });

  test('takes the words of the Q-Former from their tensor', () => {
    const file = buildSafetensors({
      'qformer.embeddings.word_embeddings.weight': f32(30523, 1),
      'language_model.model.embed_tokens.weight': f32(32064, 1),
    });
    const { config } = openCheckpoint(folder({ 'config.json': BLIP2, 'model.safetensors': file }));
    expect([config.qformer!.vocabSize, config.text.vocabSize]).toEqual([30523, 32064]);
  });

  test('of a text model stops where generation_config.json says, of a vision model where text_config says', () => {
    const generation = { eos_token_id: [8, 9], max_new_tokens: 5 };
    const open = (config: object) =>
      openCheckpoint(
        folder({ 'config.json': config, 'generation_config.json': generation, 'model.safetensors': weights() }),
      );
    expect(open(LLAMA).generation).toEqual({ eosTokenIds: [8, 9], bosTokenId: 1, maxNewTokens: 5 });
    expect(open(BLIP2).generation).toEqual({ eosTokenIds: [7], bosTokenId: 1, maxNewTokens: 5 });
  });

  test('without generation_config.json uses the ids of config.json', () => {
    const { generation } = openCheckpoint(folder({ 'config.json': LLAMA, 'model.safetensors': weights() }));
    expect(generation).toEqual({ eosTokenIds: [7], bosTokenId: 1 });
  });

  test('prefers image settings nested in processor_config.json, then preprocessor_config.json, then defaults', () => {
    const files = { 'config.json': BLIP2, 'model.safetensors': weights() };
    const preprocessor = { 'preprocessor_config.json': { size: 100 } };
    const processor = { 'processor_config.json': { image_processor: { size: 200 }, num_query_tokens: null } };
    const size = (more: object) => openCheckpoint(folder({ ...files, ...more })).preprocessor!.imageSize;
    expect([size({}), size(preprocessor), size({ ...preprocessor, ...processor })]).toEqual([224, 100, 200]);
  });
});

describe('a wrong checkpoint folder', () => {
  test.each([undefined, null, 3, '', {}])('given as %j is an invalid argument', (dir) => {
    expectError(() => openCheckpoint(dir as string), 'INVALID_ARGUMENT', 'folder must be a non-empty string');
  });
  test('that does not exist is an IO error that names it', () => {
    expectError(() => openCheckpoint(join(root, 'absent')), 'IO', /absent: no such folder/);
  });
  test('that is a file is an IO error', () => {
    writeFileSync(join(root, 'file'), '');
    expectError(() => openCheckpoint(join(root, 'file')), 'IO', 'is a file');
    expectError(() => openCheckpoint(join(root, 'file', 'below')), 'IO', 'no such folder');
  });
  test('without config.json says so', () => {
    expectError(() => openCheckpoint(folder({ 'model.safetensors': weights() })), 'IO', 'no config.json');
  });
  test.each(['config.json', 'model.safetensors', INDEX, 'generation_config.json'])(
    'with a directory named %s is an IO error',
    (name) => {
      const files: Record<string, object | Uint8Array> = { 'config.json': LLAMA, 'model.safetensors': weights() };
      delete files[name];
      if (name === INDEX) delete files['model.safetensors'];
      const dir = folder(files);
      mkdirSync(join(dir, name));
      expectError(() => openCheckpoint(dir), 'IO', `${name}: is a directory`);
    },
  );
  test.each([
    ['text', 'model_type: llama'],
    ['a list', '[]'],
    ['null', 'null'],
    ['nothing', ''],
    ['bytes that are not UTF-8', new Uint8Array([0x7b, 0xff, 0x7d])],
  ])('whose config.json holds %s is a FORMAT error', (_name, content) => {
    expectError(
      () => openCheckpoint(folder({ 'config.json': content })),
      'FORMAT',
      /config.json: (not valid JSON|must hold)/,
    );
  });
  test('with .bin shards but without their index says what it found', () => {
    const dir = folder({ 'config.json': LLAMA, 'pytorch_model-00001-of-00002.bin': 'x' });
    expectError(() => openCheckpoint(dir), 'IO', 'found pytorch_model-00001-of-00002.bin without an index');
  });
  test('without weights says what it looked for and what it found', () => {
    expectError(
      () => openCheckpoint(folder({ 'config.json': LLAMA })),
      'IO',
      'has none of model.safetensors, model.safetensors.index.json, pytorch_model.bin',
    );
    const loose = folder({ 'config.json': LLAMA, 'model-00001-of-00002.safetensors': weights() });
    expectError(() => openCheckpoint(loose), 'IO', 'found model-00001-of-00002.safetensors without an index');
  });
  test('with another number of query tokens in processor_config.json is a FORMAT error', () => {
    const dir = folder({
      'config.json': BLIP2,
      'processor_config.json': { num_query_tokens: 16 },
      'model.safetensors': weights(),
    });
    expectError(() => openCheckpoint(dir), 'FORMAT', 'num_query_tokens is 16, but config.json says 32');
  });
  test('with a truncated model.safetensors is a FORMAT error that names the file', () => {
    const dir = folder({ 'config.json': LLAMA, 'model.safetensors': weights().subarray(0, 40) });
    expectError(() => openCheckpoint(dir), 'FORMAT', join(dir, 'model.safetensors'));
  });
});

describe('a wrong shard index', () => {
  test('that names missing shards lists all of them', () => {
    const dir = sharded(
      { a: 's1.safetensors', b: 's2.safetensors', c: 's3.safetensors' },
      { 's2.safetensors': { b: f32(1) } },
    );
    const error = expectError(
      () => openCheckpoint(dir),
      'IO',
      '2 of 3 shards are missing: s1.safetensors, s3.safetensors',
    );
    expect(error.details['missing']).toEqual(['s1.safetensors', 's3.safetensors']);
  });
  test('that puts a tensor into another shard names both places', () => {
    const dir = sharded(
      { a: 's1.safetensors', b: 's1.safetensors', c: 's2.safetensors' },
      { 's1.safetensors': { a: f32(1) }, 's2.safetensors': { b: f32(1), c: f32(1) } },
    );
    expectError(
      () => openCheckpoint(dir),
      'FORMAT',
      /tensor 'b' should be in .*s1.safetensors, but is in .*s2.safetensors/,
    );
  });
  test('that names a tensor of no shard is a FORMAT error', () => {
    const dir = sharded({ a: 's1.safetensors', b: 's1.safetensors' }, { 's1.safetensors': { a: f32(1) } });
    expectError(() => openCheckpoint(dir), 'FORMAT', "tensor 'b' should be in");
  });
  test('over shards that store a tensor twice names both', () => {
    const dir = sharded(
      { a: 's1.safetensors', b: 's2.safetensors' },
      { 's1.safetensors': { a: f32(1) }, 's2.safetensors': { a: f32(1), b: f32(1) } },
    );
    expectError(() => openCheckpoint(dir), 'FORMAT', /tensor 'a' is stored twice, in .*s1.* and in .*s2/);
  });
  test.each([
    '../secret.safetensors',
    '/etc/x.safetensors',
    'sub/x.safetensors',
    '..\\x.safetensors',
    'C:x.safetensors',
    'x.bin',
    '..',
    '',
    5,
    null,
  ])('that names the file %j is a FORMAT error', (name) => {
    writeFileSync(join(root, 'secret.safetensors'), weights());
    expectError(
      () => openCheckpoint(sharded({ a: name }, {})),
      'FORMAT',
      "weight_map['a'] must name a .safetensors file",
    );
  });
  test.each([
    [{}, 'weight_map is empty'],
    [undefined, 'weight_map is missing'],
    [['x'], 'weight_map must be an object'],
  ])('with the weight_map %j is a FORMAT error', (weightMap, message) => {
    expectError(() => openCheckpoint(sharded(weightMap, {})), 'FORMAT', message);
  });
  test('that names a directory is an IO error', () => {
    const dir = sharded({ a: 's1.safetensors' }, {});
    mkdirSync(join(dir, 's1.safetensors'));
    expectError(() => openCheckpoint(dir), 'IO', 's1.safetensors: is a directory');
  });
});

test('opening a checkpoint changes nothing in its folder and holds no file open', () => {
  const dir = join(root, 'copy');
  cpSync(fixture('llama-gqa-tiny'), dir, { recursive: true });
  const before = [readdirSync(dir), readdirSync('/proc/self/fd').length];
  for (let i = 0; i < 50; i++) openCheckpoint(dir);
  renameSync(join(dir, 'model.safetensors'), join(dir, 'moved'));
  for (let i = 0; i < 50; i++) expectError(() => openCheckpoint(dir), 'IO', 'has none of');
  renameSync(join(dir, 'moved'), join(dir, 'model.safetensors'));
  expect([readdirSync(dir), readdirSync('/proc/self/fd').length]).toEqual(before);
});
