// Incremental decoding: joined deltas equal the whole text, and nothing given out is ever partial.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';

import { JsonFields } from '../lib/io/json-fields.js';
import { IncrementalDetokenizer } from '../lib/io/detokenizer.js';
import { compileDecoder } from '../lib/io/token-decoder.js';
import { TextTokenizer } from '../lib/io/tokenizer.js';
import { expectError } from './support/expect-error.js';
import { propertyRuns } from './support/property-runs.js';

const folderOf = (name: string) => fileURLToPath(new URL(`./fixtures/tokenizers/${name}/`, import.meta.url));
const NAMES = [
  'llama',
  'llama-metaspace',
  'vicuna-instructblip',
  'ziya-llama',
  'bert-qformer',
  'bert-itm',
  'opt',
  't5',
];
const loneSurrogate = /\p{Surrogate}/u;

/** Every delta, the flush last. */
function stream(tokenizer: TextTokenizer, ids: readonly number[], skipSpecialTokens = false): string[] {
  const detokenizer = new IncrementalDetokenizer(tokenizer, { skipSpecialTokens });
  const deltas = ids.map((id) => detokenizer.push(id));
  deltas.push(detokenizer.flush());
  expect(detokenizer.text).toBe(deltas.join(''));
  return deltas;
}

describe.each(NAMES)('streaming with %s', (name) => {
  const tokenizer = TextTokenizer.load(folderOf(name));
  const { cases } = JSON.parse(readFileSync(`${folderOf(name)}expected.json`, 'utf8')) as {
    cases: { ids: number[]; decoded: string; decoded_skip_special: string }[];
  };

  test('gives the reference text of every fixture', () => {
    for (const { ids, decoded, decoded_skip_special } of cases) {
      expect(stream(tokenizer, ids).join('')).toBe(decoded);
      expect(stream(tokenizer, ids, true).join('')).toBe(decoded_skip_special);
    }
  });

  test('of random ids gives exactly the text of decoding them at once, for every prefix', () => {
    const anyId = fc.nat(tokenizer.vocabSize + 8);
    const bytes = fc.integer({ min: 3, max: 258 });
    const ids = fc.array(fc.oneof(anyId, bytes), { maxLength: 40 });
    fc.assert(
      fc.property(ids, fc.boolean(), (sequence, skipSpecialTokens) => {
        const detokenizer = new IncrementalDetokenizer(tokenizer, { skipSpecialTokens });
        sequence.forEach((id, i) => {
          const delta = detokenizer.push(id);
          expect(delta).not.toMatch(loneSurrogate);
          const whole = tokenizer.decode(sequence.slice(0, i + 1), { skipSpecialTokens });
          expect(whole.startsWith(detokenizer.text) || detokenizer.text === '').toBe(true);
        });
        detokenizer.flush();
        expect(detokenizer.text).toBe(tokenizer.decode(sequence, { skipSpecialTokens }));
      }),
      propertyRuns(400),
    );
  });

  test('of encoded random text never gives a replacement character', () => {
    const wordPiece = name.startsWith('bert') || name === 't5';
    fc.assert(
      // U+2581 is how the vocabulary writes a space
      fc.property(fc.string({ unit: 'grapheme', maxLength: 30 }), (random) => {
        const text = random.replace(/[\u2581\ufffd]/g, 'x');
        const deltas = stream(tokenizer, tokenizer.encode(text), true);
        for (const delta of deltas) expect(delta).not.toMatch(/\ufffd|\p{Surrogate}/u);
        if (!wordPiece) expect(deltas.join('').trimStart()).toBe(text.trimStart());
      }),
      propertyRuns(300),
    );
  });
});

describe('streaming characters that have no token of their own', () => {
  test.each(['llama', 'opt'])('with %s gives whole characters only', (name) => {
    const tokenizer = TextTokenizer.load(folderOf(name));
    const text = 'a 龘 b 👩‍👩‍👧‍👦 c é 𠮷.';
    const deltas = stream(tokenizer, tokenizer.encode(text, { addSpecialTokens: false }));
    expect(deltas.join('')).toBe(text);
    for (const delta of deltas) expect(delta).not.toMatch(/\ufffd|\p{Surrogate}/u);
    expect(deltas.filter((delta) => delta !== '').length).toBeGreaterThan(6);
  });

  test('gives a character cut off at the end as the reference decodes it', () => {
    const tokenizer = TextTokenizer.load(folderOf('llama'));
    const ids = tokenizer.encode('好龘', { addSpecialTokens: false });
    const cut = ids.slice(0, -1);
    const deltas = stream(tokenizer, cut);
    expect(deltas.slice(0, -1).join('')).toBe('好');
    expect(deltas.at(-1)).toBe('\ufffd\ufffd');
  });

  test('keeps a byte order mark', () => {
    const tokenizer = TextTokenizer.load(folderOf('llama'));
    expect(stream(tokenizer, tokenizer.encode('\ufeffbom', { addSpecialTokens: false })).join('')).toBe('\ufeffbom');
  });
});

describe('a prompt', () => {
  const tokenizer = TextTokenizer.load(folderOf('llama'));
  test('gives context for the first space and no text', () => {
    const [prompt, answer] = [tokenizer.encode('one'), tokenizer.encode('two', { addSpecialTokens: false })];
    const after = new IncrementalDetokenizer(tokenizer, { promptIds: prompt });
    const alone = new IncrementalDetokenizer(tokenizer);
    for (const id of answer) {
      after.push(id);
      alone.push(id);
    }
    expect([after.text, alone.text]).toEqual([' two', 'two']);
  });
});

test('pushing what is no id is refused', () => {
  const detokenizer = new IncrementalDetokenizer(TextTokenizer.load(folderOf('llama')));
  expectError(() => detokenizer.push(-1), 'INVALID_ARGUMENT', 'token id');
});

describe('a decoder chain', () => {
  const compile = (decoder: unknown) =>
    compileDecoder(decoder === undefined ? undefined : new JsonFields('t', decoder as Record<string, unknown>));
  const run = (decoder: unknown, tokens: string[]) => {
    const chain = compile(decoder)();
    return [...tokens.map((token) => chain.push(token)), chain.flush()];
  };
  const sequence = (...decoders: object[]) => ({ type: 'Sequence', decoders });

  test('strips at both ends of the whole text, holding back what may be the end', () => {
    const decoder = sequence({ type: 'Fuse' }, { type: 'Strip', content: ' ', start: 2, stop: 1 });
    expect(run(decoder, [' ', '  a', ' ', 'b', ' ', ' '])).toEqual(['', ' a', '', ' b', '', ' ', '']);
  });
  test('strips each token when tokens are not fused', () => {
    expect(run({ type: 'Strip', content: '_', start: 1, stop: 1 }, ['_a_', '__', '_'])).toEqual(['a', '', '', '']);
  });
  test('of Metaspace drops all marks of the first token only', () => {
    const decoder = { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' };
    expect(run(decoder, ['▁▁a▁', '▁b'])).toEqual(['a', ' b', '']);
    expect(run({ ...decoder, prepend_scheme: 'never' }, ['▁a'])).toEqual([' a', '']);
  });
  test('of WordPiece joins continuations and cleans up punctuation', () => {
    expect(run({ type: 'WordPiece', prefix: '##', cleanup: true }, ['##a', '##b', 'c', '.'])).toEqual([
      '##a',
      'b',
      ' c',
      '.',
      '',
    ]);
  });
  test('that is absent joins tokens by spaces', () => {
    expect(run(undefined, ['a', 'b'])).toEqual(['a', ' b', '']);
  });
  test('is as new after its flush', () => {
    const chain = compile(
      sequence({ type: 'ByteFallback' }, { type: 'Fuse' }, { type: 'Strip', content: ' ', start: 1 }),
    )();
    const once = () => chain.push(' x') + chain.push('<0xE4>') + chain.flush();
    expect([once(), once()]).toEqual(['x\ufffd', 'x\ufffd']);
  });
});
