// tokenizer.json → ids and back. Encoding is the work of @huggingface/tokenizers, with two corrections (CJK of the supplementary
// planes, which its BERT normaliser does not split; SentencePiece's normalisation table, which it approximates); decoding is our own chain of stages (token-decoder.ts), because the library
// differs from the reference for invalid byte runs and for byte order marks, and cannot decode incrementally.

import { Buffer } from 'node:buffer';

import { Tokenizer } from '@huggingface/tokenizers';

import { QFormerError, describe, isQFormerError } from '../errors.js';
import { compileCharsmap } from './charsmap.js';
import { isJsonObject, type JsonObject } from './files.js';
import { JsonFields } from './json-fields.js';
import { compileDecoder, type TokenDecoder } from './token-decoder.js';
import { readTokenizerFiles } from './tokenizer-files.js';

/** `addSpecialTokens` (default true) adds bos, [CLS] and so on as the file says; `maxTokens` refuses longer texts. */
export interface EncodeOptions {
  addSpecialTokens?: boolean;
  maxTokens?: number;
}

/** `skipSpecialTokens` (default false) leaves special tokens out of the text. */
export interface DecodeOptions {
  skipSpecialTokens?: boolean;
}

/** Longest text that is encoded, in UTF-16 units; encoding costs up to about 15 ms per thousand. */
export const MAX_TEXT_LENGTH = 2 ** 18;

const MAX_TOKEN_ID = 2 ** 24;
const MODELS = ['BPE', 'WordPiece', 'Unigram'];
// as the reference has them: its third range begins at 2B920, not at 2B820
const SUPPLEMENTARY_CJK =
  /[\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{2F800}-\u{2FA1F}]/gu;

/** The tokenizer of one model; immutable. */
export class TextTokenizer {
  private readonly specialTokens: ReadonlySet<string>;
  private readonly newDecoder: () => TokenDecoder;
  private readonly splitsChinese: boolean;
  // units of text one token can stand for, where that is bounded
  private readonly unitsPerToken: number;

  private constructor(
    private readonly tokenizer: Tokenizer,
    fields: JsonFields,
    /** Number of ids: the largest one plus one, added tokens included. */
    readonly vocabSize: number,
  ) {
    const added = fields.objectList('added_tokens');
    this.specialTokens = new Set(
      added.filter((token) => token.optionalBoolean('special')).map((token) => token.optionalString('content')!),
    );
    this.newDecoder = compileDecoder(fields.optionalObject('decoder'));
    const normalizer = fields.optionalObject('normalizer');
    this.splitsChinese =
      normalizer?.optionalString('type') === 'BertNormalizer' &&
      (normalizer.optionalBoolean('handle_chinese_chars') ?? true);
    this.unitsPerToken = this.longestToken(fields);
  }

  /** Reads the tokenizer of the folder `dir`, in whatever files it comes. Throws IO, FORMAT, UNSUPPORTED. */
  static load(dir: string): TextTokenizer {
    const { json, config, file } = readTokenizerFiles(dir);
    const fields = new JsonFields(file, json);
    // ids are checked first: the library would fail on them with errors that name no key
    const vocabSize = countIds(fields);
    return new TextTokenizer(construct(json, config, file), fields, vocabSize);
  }

  /**
   * The ids of `text`. Throws INVALID_ARGUMENT when it is no string, not well-formed UTF-16, longer than MAX_TEXT_LENGTH, or has
   * more than `maxTokens` tokens (found before encoding where the length alone shows it).
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const { addSpecialTokens = true, maxTokens = Infinity } = options;
    this.checkText(text, maxTokens);
    const input = this.splitsChinese ? text.replace(SUPPLEMENTARY_CJK, ' $& ') : text;
    const ids = this.tokenizer.encode(input, { add_special_tokens: addSpecialTokens }).ids as (number | undefined)[];
    const unknown = ids.indexOf(undefined);
    if (unknown >= 0)
      throw new QFormerError('FORMAT', 'the tokenizer has no token for a part of the text, and no unknown token');
    if (ids.length > maxTokens) throw tooLong(`has ${ids.length} tokens`, maxTokens);
    return ids as number[];
  }

  /** The text of `ids`; ids without a token give none. Throws INVALID_ARGUMENT for what is no id. */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const decoder = this.newDecoder();
    let text = '';
    for (const id of ids) {
      const token = this.tokenText(id, options.skipSpecialTokens ?? false);
      if (token !== undefined) text += decoder.push(token);
    }
    return text + decoder.flush();
  }

  /** The id of a token, exactly as written in the vocabulary. */
  tokenToId(token: string): number | undefined {
    return this.tokenizer.token_to_id(token);
  }

  /** The token of an id as written in the vocabulary; undefined where there is none. Throws INVALID_ARGUMENT. */
  idToToken(id: number): string | undefined {
    if (!Number.isSafeInteger(id) || id < 0) {
      throw new QFormerError('INVALID_ARGUMENT', `token id must be a whole number from 0, got ${describe(id)}`);
    }
    return this.tokenizer.id_to_token(id);
  }

  /** True for ids that `skipSpecialTokens` leaves out. */
  isSpecial(id: number): boolean {
    return this.specialTokens.has(this.idToToken(id) ?? '');
  }

  /** A new decoder of one sequence, for incremental decoding. */
  createDecoder(): TokenDecoder {
    return this.newDecoder();
  }

  /** The token that decoding `id` has to handle: undefined for unknown ids and for special ones that are skipped. */
  tokenText(id: number, skipSpecialTokens: boolean): string | undefined {
    const token = this.idToToken(id);
    return token !== undefined && skipSpecialTokens && this.specialTokens.has(token) ? undefined : token;
  }

  private checkText(text: unknown, maxTokens: number): asserts text is string {
    if (typeof text !== 'string')
      throw new QFormerError('INVALID_ARGUMENT', `text must be a string, got ${describe(text)}`);
    if (text.length > MAX_TEXT_LENGTH) {
      throw new QFormerError(
        'INVALID_ARGUMENT',
        `text has ${text.length} characters, more than the limit of ${MAX_TEXT_LENGTH}`,
      );
    }
    const least = Math.ceil(text.length / this.unitsPerToken);
    if (least > maxTokens) throw tooLong(`has at least ${least} tokens`, maxTokens);
    if (!isWellFormed(text))
      throw new QFormerError('INVALID_ARGUMENT', 'text is not well-formed UTF-16: it has a lone surrogate');
  }

  // BPE covers every character by a token, so the longest one bounds the text from above. WordPiece and Unigram turn stretches
  // of any length into one unknown token, and some normalisers drop characters.
  private longestToken(fields: JsonFields): number {
    const model = fields.optionalObject('model')!;
    const normalizer = fields.optionalObject('normalizer')?.optionalString('type') ?? 'Sequence';
    if (model.optionalString('type') !== 'BPE' || normalizer !== 'Sequence' || model.raw('byte_fallback') !== true)
      return Infinity;
    let longest = 1;
    for (let id = 0; id < this.vocabSize; id++)
      longest = Math.max(longest, this.tokenizer.id_to_token(id)?.length ?? 0);
    return longest;
  }
}

function construct(json: JsonObject, config: JsonObject, file: string): Tokenizer {
  try {
    const tokenizer = new Tokenizer(json, config);
    useCharsmap(json['normalizer'], tokenizer.normalizer, file);
    tokenizer.encode('a');
    return tokenizer;
  } catch (error) {
    if (isQFormerError(error)) throw error;
    throw new QFormerError(
      'FORMAT',
      `${file}: not a usable tokenizer (${(error as Error).message})`,
      { file },
      { cause: error },
    );
  }
}

// Returns the largest id plus one. Ids become array indices, so absurd ones are refused.
function countIds(fields: JsonFields): number {
  let count = 0;
  for (const token of fields.objectList('added_tokens')) {
    if (token.optionalString('content') === undefined) throw token.fault('content', 'must be a string', undefined);
    token.optionalBoolean('special');
    count = Math.max(count, token.integer('id', { min: 0, max: MAX_TOKEN_ID }) + 1);
  }
  const model = fields.optionalObject('model');
  if (model === undefined) throw fields.fault('model', 'must be an object', undefined);
  const type = model.optionalString('type') ?? 'BPE';
  if (!MODELS.includes(type)) throw model.unsupported('type', type, `known: ${MODELS.join(', ')}`);
  const vocab = model.raw('vocab');
  if (Array.isArray(vocab)) return Math.max(count, vocab.length);
  if (model.optionalObject('vocab') === undefined) throw model.fault('vocab', 'must be an object or a list', vocab);
  for (const [token, id] of Object.entries(vocab as JsonObject)) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) > MAX_TOKEN_ID) {
      throw model.fault(`vocab[${describe(token)}]`, `must be an id from 0 to ${MAX_TOKEN_ID}`, id);
    }
    count = Math.max(count, (id as number) + 1);
  }
  return count;
}

/** Lets SentencePiece's normalisers use their tables, which the library replaces by NFKC. */
function useCharsmap(config: unknown, normalizer: unknown, file: string): void {
  if (!isJsonObject(config)) return;
  if (config['type'] === 'Sequence' && Array.isArray(config['normalizers'])) {
    const { normalizers } = normalizer as { normalizers: unknown[] };
    config['normalizers'].forEach((each, i) => useCharsmap(each, normalizers[i], file));
  }
  const charsmap = config['precompiled_charsmap'];
  if (config['type'] !== 'Precompiled' || typeof charsmap !== 'string') return;
  const normalize = compileCharsmap(Buffer.from(charsmap, 'base64'), file);
  Object.assign(normalizer as object, { normalize });
}

function tooLong(finding: string, maxTokens: number): QFormerError {
  return new QFormerError('INVALID_ARGUMENT', `text ${finding}, more than the limit of ${maxTokens}`, { maxTokens });
}

// String.prototype.isWellFormed is newer than the library's TypeScript target
function isWellFormed(text: string): boolean {
  return !/\p{Surrogate}/u.test(text);
}
