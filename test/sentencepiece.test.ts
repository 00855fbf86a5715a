// Vocabularies that are not a tokenizer.json and wrong: damaged SentencePiece models, tables and lists of words are typed errors,
// never a crash or a tokenizer that gives other ids.

import { Buffer } from 'node:buffer';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';

import { isQFormerError, type ErrorCode } from '../lib/errors.js';
import { compileCharsmap } from '../lib/io/charsmap.js';
import { readSentencePiece } from '../lib/io/sentencepiece.js';
import { TextTokenizer } from '../lib/io/tokenizer.js';
import { expectError } from './support/expect-error.js';
import { fixturePath } from './support/fixtures.js';
import { propertyRuns } from './support/property-runs.js';

const root = mkdtempSync(join(tmpdir(), 'qformer-sentencepiece-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

let count = 0;
function folder(files: Record<string, string | Uint8Array>): string {
  const dir = mkdtempSync(join(root, `${count++}-`));
  for (const [name, content] of Object.entries(files)) writeFileSync(join(dir, name), content);
  return dir;
}

const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)]);
const bytesField = (field: number, content: Uint8Array): Buffer =>
  Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(content.length)]), content]);
const intField = (field: number, value: number): Buffer => Buffer.from([...varint(field * 8), ...varint(value)]);

function piece(text: string | Uint8Array, type: number, score = 0): Buffer {
  const float = Buffer.alloc(5, 0x15);
  float.writeFloatLE(score, 1);
  return bytesField(1, Buffer.concat([bytesField(1, Buffer.from(text)), float, intField(3, type)]));
}

const trainer = (kind: number, unknown = 0): Buffer =>
  bytesField(2, Buffer.concat([intField(3, kind), intField(40, unknown)]));
const special = [piece('<unk>', 2), piece('<s>', 3), piece('</s>', 3)];
const model = (...parts: Buffer[]): Buffer => Buffer.concat([...special, ...parts]);
const letters = [...'▁ab'].map((letter, i) => piece(letter, 1, -5 - i));

describe('a SentencePiece model', () => {
  test('of kind BPE merges the piece with the better score first', () => {
    const pieces = [...letters, piece('ab', 1, -2), piece('▁a', 1, -1)];
    const dir = folder({ 'tokenizer.model': model(trainer(2), ...pieces) });
    const tokens = (text: string) => {
      const tokenizer = TextTokenizer.load(dir);
      return tokenizer.encode(text).map((id) => tokenizer.idToToken(id));
    };
    expect(tokens('ab')).toEqual(['<s>', '▁a', 'b']);
    expect(tokens('b ab')).toEqual(['<s>', '▁', 'b', '▁a', 'b']);
    expect(tokens('aab')).toEqual(['<s>', '▁a', 'ab']);
  });

  test('gets the tokens that added_tokens.json and tokenizer_config.json add, and no front token where they say so', () => {
    const files = {
      'tokenizer.model': model(trainer(2), ...letters),
      'added_tokens.json': '{"<human>":6,"<bot>":7}',
      'tokenizer_config.json': '{"add_bos_token":false,"additional_special_tokens":["<bot>"]}',
    };
    const tokenizer = TextTokenizer.load(folder(files));
    expect(tokenizer.encode('<human>a<bot>')).toEqual([6, 3, 4, 7]);
    expect([tokenizer.isSpecial(6), tokenizer.isSpecial(7)]).toEqual([false, true]);
  });

  test.each<[string, Buffer, ErrorCode, RegExp]>([
    ['that is empty', Buffer.alloc(0), 'FORMAT', /no pieces/],
    ['without an unknown piece', Buffer.concat([piece('a', 1)]), 'FORMAT', /no unknown piece/],
    ['whose unknown piece is elsewhere', model(trainer(2, 77)), 'FORMAT', /no unknown piece/],
    ['of words', model(trainer(3)), 'UNSUPPORTED', /kind 3/],
    ['with a piece beyond the file', Buffer.from([0x0a, 0x7f, 0x0a]), 'FORMAT', /truncated/],
    ['with an endless number', Buffer.from([0x08, ...Array<number>(11).fill(0xff)]), 'FORMAT', /more than ten bytes/],
    ['with a negative length', Buffer.from([0x0a, ...Array<number>(9).fill(0xff), 1]), 'FORMAT', /truncated/],
    ['with an unknown wire type', Buffer.from([0x0b]), 'FORMAT', /wire type 3/],
    ['with a number for a piece', Buffer.from([0x08, 1]), 'FORMAT', /another type/],
    ['with a piece that is not UTF-8', model(piece(Buffer.from([0xff]), 1)), 'FORMAT', /not UTF-8/],
    ['with a piece of kilobytes', model(piece('a'.repeat(5000), 1)), 'FORMAT', /5000 bytes/],
    ['with a score that is no number', model(piece('a', 1, NaN)), 'FORMAT', /no number/],
  ])('%s is refused', (_, bytes, code, message) => {
    expectError(() => TextTokenizer.load(folder({ 'tokenizer.model': bytes })), code, message);
  });

  test('without the token that begins a text is refused', () => {
    const dir = folder({ 'tokenizer.model': Buffer.concat([piece('<unk>', 2), trainer(2)]) });
    expectError(() => TextTokenizer.load(dir), 'FORMAT', "has no token '<s>'");
  });

  test('that was damaged is refused with FORMAT or UNSUPPORTED, or read', () => {
    const whole = readFileSync(fixturePath('tokenizers', 'llama', 'tokenizer.model'));
    const file = join(root, 'damaged.model');
    const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(damage, fc.nat(whole.length), (edits, length) => {
        const bytes = Buffer.from(whole.subarray(0, length));
        for (const [position, value] of edits) bytes[position % whole.length] = value;
        writeFileSync(file, bytes);
        expectTyped(() => readSentencePiece(file));
      }),
      propertyRuns(150),
    );
  });
});

describe('a normalisation table', () => {
  const t5 = JSON.parse(readFileSync(fixturePath('tokenizers', 't5', 'tokenizer.json'), 'utf8')) as {
    normalizer: { precompiled_charsmap: string };
  };
  const table = Buffer.from(t5.normalizer.precompiled_charsmap, 'base64');

  test('replaces graphemes first and characters then', () => {
    const normalize = compileCharsmap(table, 'x');
    expect(normalize('plain')).toBe('plain');
    expect(normalize('ｆｕｌｌ')).toBe('full');
    expect(normalize('e\u0301')).toBe('é');
    expect(normalize('ﬁ①')).toBe('fi1');
    expect(normalize('a\u3000b\tc')).toBe('a b c');
  });

  test('that is damaged never makes more than a wrong text', () => {
    const damage = fc.array(fc.tuple(fc.nat(5000), fc.nat(255)), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(damage, fc.string({ unit: 'grapheme' }), (edits, text) => {
        const bytes = Buffer.from(table.subarray(0, 60_000));
        for (const [position, value] of edits) bytes[position] = value;
        expectTyped(() => compileCharsmap(bytes, 'x')(text));
      }),
      propertyRuns(50),
    );
  });

  test.each([0, 3, 4, 7])('of %i bytes is refused', (length) => {
    expectError(() => compileCharsmap(table.subarray(0, length), 'x'), 'FORMAT', 'damaged');
  });
});

describe('a list of words', () => {
  test('may end its lines like Windows', () => {
    const words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'a', '##b'].join('\r\n');
    expect(TextTokenizer.load(folder({ 'vocab.txt': words })).encode('AB a c')).toEqual([2, 4, 5, 4, 1, 3]);
  });

  test('without the tokens around a text is refused', () => {
    expectError(() => TextTokenizer.load(folder({ 'vocab.txt': '[UNK]\na\n' })), 'FORMAT', "has no token '[CLS]'");
  });

  test('with ids that are none is refused', () => {
    const dir = folder({ 'vocab.json': '{"</s>":-1}', 'merges.txt': '' });
    expectError(() => TextTokenizer.load(dir), 'FORMAT', 'must be an id');
  });
});

function expectTyped(run: () => unknown): void {
  try {
    run();
  } catch (error) {
    if (!isQFormerError(error) || (error.code !== 'FORMAT' && error.code !== 'UNSUPPORTED')) throw error;
  }
}
