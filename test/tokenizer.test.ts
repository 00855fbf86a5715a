// Tokenizers against the reference: ids, text, special tokens, odd texts; then files and texts that are wrong.

import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { afterAll, describe, expect, test } from 'vitest';

import { MAX_TEXT_LENGTH, TextTokenizer } from '../lib/io/tokenizer.js';
import { expectError } from './support/expect-error.js';

interface Case {
  text: string;
  ids: number[];
  ids_no_special: number[];
  decoded: string;
  decoded_skip_special: string;
}
type DecodeCase = Pick<Case, 'ids' | 'decoded' | 'decoded_skip_special'>;
type Json = Record<string, unknown>;

const folderOf = (name: string) => fileURLToPath(new URL(`./fixtures/tokenizers/${name}/`, import.meta.url));
const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as Json;
const LLAMA = ['llama', 'llama-metaspace', 'vicuna-instructblip', 'ziya-llama'];
const BERT = ['bert-qformer', 'bert-itm'];
const ALL = [...LLAMA, ...BERT, 'opt', 't5', 't5-spmconverter'];

// Each tokenizer twice: from its tokenizer.json, and from the files that it was made of.
const root = mkdtempSync(join(tmpdir(), 'qformer-vocabularies-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
function withoutJson(name: string): string {
  const dir = join(root, name);
  cpSync(folderOf(name), dir, { recursive: true });
  rmSync(join(dir, 'tokenizer.json'));
  return dir;
}
const sources = ALL.flatMap((name): [string, string, () => string][] => [
  [name, 'tokenizer.json', () => folderOf(name)],
  [
    name,
    readdirSync(folderOf(name))
      .filter((file) => /^(tokenizer|spiece).model$|vocab|merges/.test(file))
      .join(' and '),
    () => withoutJson(name),
  ],
]);

describe.each(sources)('the tokenizer %s from %s', (name, _, folder) => {
  const tokenizer = TextTokenizer.load(folder());
  const expected = readJson(join(folderOf(name), 'expected.json')) as unknown as {
    cases: Case[];
    decode_cases: DecodeCase[];
  };

  test('encodes every text exactly, with and without special tokens', () => {
    expect(expected.cases.length).toBe(66);
    for (const { text, ids, ids_no_special } of expected.cases) {
      expect(tokenizer.encode(text), JSON.stringify(text)).toEqual(ids);
      expect(tokenizer.encode(text, { addSpecialTokens: false }), JSON.stringify(text)).toEqual(ids_no_special);
    }
  });

  test('decodes the ids of every text exactly, with and without special tokens', () => {
    for (const { ids, decoded, decoded_skip_special } of expected.cases) {
      expect(tokenizer.decode(ids)).toBe(decoded);
      expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(decoded_skip_special);
    }
  });

  test('decodes random ids exactly, invalid byte runs included', () => {
    expect(expected.decode_cases.length).toBe(20);
    for (const { ids, decoded, decoded_skip_special } of expected.decode_cases) {
      expect(tokenizer.decode(ids), JSON.stringify(ids)).toBe(decoded);
      expect(tokenizer.decode(ids, { skipSpecialTokens: true }), JSON.stringify(ids)).toBe(decoded_skip_special);
    }
  });

  test('knows its ids and tokens', () => {
    const token = tokenizer.idToToken(7)!;
    expect(tokenizer.tokenToId(token)).toBe(7);
    expect(tokenizer.idToToken(tokenizer.vocabSize - 1)).toBeTypeOf('string');
    expect(tokenizer.idToToken(tokenizer.vocabSize)).toBeUndefined();
    expect(tokenizer.tokenToId('no such token')).toBeUndefined();
  });

  test('gives no text for an id beyond its vocabulary', () => {
    const [id] = tokenizer.encode('a', { addSpecialTokens: false });
    const beyond = tokenizer.vocabSize + 40;
    expect(tokenizer.decode([beyond, id!, beyond])).toBe(tokenizer.decode([id!]));
    expect(tokenizer.decode([])).toBe('');
  });
});

test('special ids are those that decoding can skip', () => {
  const tokenizer = TextTokenizer.load(folderOf('vicuna-instructblip'));
  expect([0, 1, 2, 3, 1001].map((id) => tokenizer.isSpecial(id))).toEqual([true, true, true, false, true]);
  expect(tokenizer.vocabSize).toBe(1002);
});

test('ids may come as any iterable', () => {
  const tokenizer = TextTokenizer.load(folderOf('llama'));
  const ids = tokenizer.encode('你好 world');
  expect(tokenizer.decode(Int32Array.from(ids))).toBe(tokenizer.decode(ids));
});

describe('a text', () => {
  const llama = TextTokenizer.load(folderOf('llama'));

  test.each(['\ud800', 'a\udc00b', 'x\ud83d', '\udc00\ud800'])('with a lone surrogate (%j) is refused', (text) => {
    expectError(() => llama.encode(text), 'INVALID_ARGUMENT', 'lone surrogate');
  });
  test.each([undefined, null, 5, ['a'], new String('a')])('given as %j is refused', (text) => {
    expectError(() => llama.encode(text as string), 'INVALID_ARGUMENT', 'text must be a string');
  });
  test('beyond the limit is refused at once', () => {
    expectError(
      () => llama.encode('a'.repeat(MAX_TEXT_LENGTH + 1)),
      'INVALID_ARGUMENT',
      'more than the limit of 262144',
    );
  });
  test('with too many tokens is refused, and before encoding where its length shows it', () => {
    expect(llama.encode('a b c', { maxTokens: 4 })).toHaveLength(4);
    expectError(
      () => llama.encode('a b c', { maxTokens: 3 }),
      'INVALID_ARGUMENT',
      'has 4 tokens, more than the limit of 3',
    );
    expectError(() => llama.encode('a '.repeat(50_000), { maxTokens: 9 }), 'INVALID_ARGUMENT', 'has at least');
  });
  test('of 100,000 characters is encoded and comes back', () => {
    const text = '这是 one 👩‍👩‍👧‍👦 text. '.repeat(4000);
    expect(llama.decode(llama.encode(text, { addSpecialTokens: false }))).toBe(text);
  });
  test('of Chinese characters beyond the basic plane is split by BERT as the reference does', () => {
    const bert = TextTokenizer.load(folderOf('bert-qformer'));
    const unknown = bert.tokenToId('[UNK]')!;
    const encode = (text: string) => bert.encode(text, { addSpecialTokens: false });
    expect(encode('𠀀𠮷')).toEqual([unknown, unknown]);
    // U+2B820…2B91F is missing from the reference's table
    expect(encode('\u{2B820}\u{2B821}')).toEqual([unknown]);
    expect(encode('\u{2B920}\u{2B921}')).toEqual([unknown, unknown]);
  });
});

describe('an id', () => {
  const llama = TextTokenizer.load(folderOf('llama'));
  test.each([-1, 1.5, NaN, Infinity, '5', null, undefined])('given as %j is refused', (id) => {
    expectError(() => llama.decode([id as number]), 'INVALID_ARGUMENT', 'token id must be a whole number');
  });
});

describe('a wrong tokenizer folder', () => {
  const root = mkdtempSync(join(tmpdir(), 'qformer-tokenizer-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  const base = readJson(join(folderOf('llama'), 'tokenizer.json'));
  let count = 0;
  const withJson = (json: unknown, config?: unknown) => {
    const dir = join(root, String(count++));
    mkdirSync(dir);
    writeFileSync(join(dir, 'tokenizer.json'), typeof json === 'string' ? json : JSON.stringify(json));
    if (config !== undefined) writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify(config));
    return dir;
  };
  const model = base['model'] as Json;

  test('without any tokenizer is an IO error', () => {
    expectError(() => TextTokenizer.load(root), 'IO', 'tokenizer.json: no such file, nor a vocabulary in another form');
  });
  test('needs no tokenizer_config.json', () => {
    expect(TextTokenizer.load(withJson(base)).encode('a')).toEqual([1, 261]);
  });
  test.each([
    ['text', 'hello', /not valid JSON/],
    ['a list', [], /must hold a JSON object/],
    ['no model', { ...base, model: undefined }, /model must be an object/],
    ['a model that is a list', { ...base, model: [] }, /model must be an object/],
    ['no vocabulary', { ...base, model: { ...model, vocab: 5 } }, /model.vocab must be an object/],
    ['an id of text', { ...base, model: { ...model, vocab: { a: '1' } } }, /model.vocab\['a'\] must be an id.*'1'/],
    ['a negative id', { ...base, model: { ...model, vocab: { a: -1 } } }, /must be an id/],
    ['an absurd id', { ...base, model: { ...model, vocab: { a: 2 ** 40 } } }, /must be an id/],
    ['no added tokens', { ...base, added_tokens: undefined }, /added_tokens is missing/],
    ['an added token without id', { ...base, added_tokens: [{ content: 'x' }] }, /added_tokens\[0\].id is missing/],
    ['an added token without content', { ...base, added_tokens: [{ id: 1 }] }, /added_tokens\[0\].content/],
    ['merges of numbers', { ...base, model: { ...model, merges: [1, 2] } }, /not a usable tokenizer/],
    ['no merges', { ...base, model: { ...model, merges: undefined } }, /not a usable tokenizer/],
    ['an unknown normaliser', { ...base, normalizer: { type: 'Magic' } }, /not a usable tokenizer/],
    ['a decoder of text', { ...base, decoder: 'x' }, /decoder must be an object|not a usable tokenizer/],
  ])('with %s is a FORMAT error that names the file', (_name, json, message) => {
    const dir = withJson(json);
    const error = expectError(() => TextTokenizer.load(dir), 'FORMAT', message);
    expect(error.message).toContain(join(dir, 'tokenizer.json'));
  });
  test.each([
    [{ type: 'CTC' }, /decoder.type = 'CTC'|not a usable/],
    [
      { type: 'Sequence', decoders: [{ type: 'Fuse' }, { type: 'ByteFallback' }] },
      /decoder.decoders\[1\].type = 'ByteFallback'/,
    ],
    [{ type: 'Replace', pattern: { Regex: 'a+' }, content: '' }, /decoder.pattern/],
  ])('with the decoder %j is UNSUPPORTED', (decoder, message) => {
    expectError(() => TextTokenizer.load(withJson({ ...base, decoder })), 'UNSUPPORTED', message);
  });
  test('with an unknown model is UNSUPPORTED', () => {
    const json = { ...base, model: { ...model, type: 'WordLevel' } };
    expectError(() => TextTokenizer.load(withJson(json)), 'UNSUPPORTED', /model.type = 'WordLevel'/);
  });
  test('with a wrong tokenizer_config.json is a FORMAT error', () => {
    expectError(
      () => TextTokenizer.load(withJson(base, [])),
      'FORMAT',
      'tokenizer_config.json: must hold a JSON object',
    );
    expectError(
      () => TextTokenizer.load(withJson(base, { additional_special_tokens: 5 })),
      'FORMAT',
      'not a usable tokenizer',
    );
  });
});
