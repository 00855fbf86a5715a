// The tokenizer of a folder as the content of a tokenizer.json, whatever files it comes in: tokenizer.json itself, else
// tokenizer.model or spiece.model (SentencePiece: LLaMA's BPE, T5's unigram), vocab.json with merges.txt (OPT) or vocab.txt
// (BERT). What the conversion says is what transformers' converters write for these models.

import { Buffer } from 'node:buffer';
import { join } from 'node:path';

import { QFormerError } from '../errors.js';
import { fileExists, isJsonObject, readJsonObject, readWholeFile, type JsonObject } from './files.js';
import { bpeMerges } from './bpe-merges.js';
import { PIECE, readSentencePiece, type SentencePieceModel } from './sentencepiece.js';

/** A tokenizer as the library takes it; `file` is what messages name. */
export interface TokenizerFiles {
  json: JsonObject;
  config: JsonObject;
  file: string;
}

/** What a folder says about special tokens besides the vocabulary. */
interface Side {
  config: JsonObject;
  /** special_tokens_map.json */
  special: JsonObject;
  /** added_tokens.json */
  added: JsonObject;
}

interface AddedToken extends JsonObject {
  id: number;
  content: string;
  special: boolean;
}

const MAX_TEXT_BYTES = 64 * 2 ** 20;
const T5_EXTRA_IDS = 100;

/** Reads the tokenizer of the folder `dir`. Throws IO (there is none), FORMAT and UNSUPPORTED. */
export function readTokenizerFiles(dir: string): TokenizerFiles {
  const path = (name: string): string => join(dir, name);
  const optional = (name: string): JsonObject => (fileExists(path(name)) ? readJsonObject(path(name)) : {});
  const config = optional('tokenizer_config.json');
  const json = path('tokenizer.json');
  if (fileExists(json)) return { json: readJsonObject(json), config, file: json };
  const side = { config, special: optional('special_tokens_map.json'), added: optional('added_tokens.json') };
  for (const file of [path('tokenizer.model'), path('spiece.model')]) {
    if (!fileExists(file)) continue;
    const model = readSentencePiece(file);
    return { json: model.kind === 'bpe' ? llama(model, side, file) : t5(model, side, file), config, file };
  }
  const [words, merges, vocab] = [path('vocab.txt'), path('merges.txt'), path('vocab.json')];
  if (fileExists(vocab) && fileExists(merges)) {
    return { json: opt(readJsonObject(vocab), lines(merges), side, vocab), config, file: vocab };
  }
  if (fileExists(words)) return { json: bert(lines(words), side, words), config, file: words };
  throw new QFormerError('IO', `${json}: no such file, nor a vocabulary in another form`, { file: json });
}

/** LLaMA: BPE with byte fallback and a space in front of the text. */
function llama(model: SentencePieceModel, side: Side, file: string): JsonObject {
  const { pieces, unknownId, byteFallback } = model;
  const vocab = new Map(pieces.map(({ text }, id) => [text, id]));
  const added = addedTokens(intrinsic(model), side);
  const bos = side.config['add_bos_token'] === false ? [] : [namedToken(side, 'bos_token', '<s>')];
  const eos = side.config['add_eos_token'] === true ? [namedToken(side, 'eos_token', '</s>')] : [];
  const isLegacy = side.config['legacy'] !== false;
  const prepended = { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, replaceSpaces] };
  return {
    added_tokens: added,
    normalizer: isLegacy ? prepended : null,
    pre_tokenizer: isLegacy ? null : metaspace('first', false),
    post_processor: template(bos, eos, vocab, added, file),
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      ...bpeDefaults,
      unk_token: pieces[unknownId]!.text,
      fuse_unk: true,
      byte_fallback: byteFallback,
      vocab: Object.fromEntries(vocab),
      merges: bpeMerges(pieces, vocab),
    },
  };
}

/** T5: unigram, with the sentinels behind the pieces. */
function t5(model: SentencePieceModel, side: Side, file: string): JsonObject {
  const { pieces, unknownId, charsmap } = model;
  const entries = pieces.map(({ text, score }): [string, number] => [text, score]);
  const extra = typeof side.config['extra_ids'] === 'number' ? side.config['extra_ids'] : T5_EXTRA_IDS;
  const known = new Set(entries.map(([text]) => text));
  const sentinels = known.has('<extra_id_0>') ? 0 : Math.min(Math.max(extra, 0), 1000);
  for (let i = sentinels - 1; i >= 0; i--) entries.push([`<extra_id_${i}>`, 0]);
  const vocab = new Map(entries.map(([text], id) => [text, id]));
  const sentinelTokens = entries.slice(pieces.length).map(([text], i) => addedToken(pieces.length + i, text, true));
  const added = addedTokens([...intrinsic(model), ...sentinelTokens], side);
  return {
    added_tokens: added,
    normalizer:
      charsmap.length === 0
        ? null
        : { type: 'Precompiled', precompiled_charsmap: Buffer.from(charsmap).toString('base64') },
    pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'WhitespaceSplit' }, metaspace('always', true)] },
    post_processor: template([], [namedToken(side, 'eos_token', '</s>')], vocab, added, file),
    decoder: metaspace('always', true),
    model: { type: 'Unigram', unk_id: unknownId, vocab: entries, byte_fallback: false },
  };
}

/** OPT: the byte-level BPE of GPT-2, with a token in front. */
function opt(vocab: JsonObject, mergeLines: readonly string[], side: Side, file: string): JsonObject {
  const ids = new Map(Object.entries(vocab) as [string, number][]);
  const added = addedTokens(fromVocabulary(side, ids, []), side);
  const bos = side.config['add_bos_token'] === false ? [] : [namedToken(side, 'bos_token', '</s>')];
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const merges = mergeLines.filter((line) => !line.startsWith('#version')).map((line) => line.split(' '));
  return {
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: template(bos, [], ids, added, file),
    decoder: { ...byteLevel, add_prefix_space: true },
    model: { ...bpeDefaults, continuing_subword_prefix: '', end_of_word_suffix: '', vocab, merges },
  };
}

/** BERT: WordPiece, by default without case and accents. */
function bert(words: readonly string[], side: Side, file: string): JsonObject {
  const { config } = side;
  const vocab = new Map(words.map((word, id) => [word, id]));
  const defaults = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'];
  const added = addedTokens(fromVocabulary(side, vocab, defaults), side);
  const [cls, sep] = [namedToken(side, 'cls_token', '[CLS]'), namedToken(side, 'sep_token', '[SEP]')];
  return {
    added_tokens: added,
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: config['tokenize_chinese_chars'] ?? true,
      strip_accents: config['strip_accents'] ?? null,
      lowercase: config['do_lower_case'] ?? true,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: template([cls], [sep], vocab, added, file),
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: namedToken(side, 'unk_token', '[UNK]'),
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(vocab),
    },
  };
}

const bpeDefaults = {
  type: 'BPE',
  dropout: null,
  unk_token: null,
  continuing_subword_prefix: null,
  end_of_word_suffix: null,
  fuse_unk: false,
  byte_fallback: false,
  ignore_merges: false,
};
const replaceSpaces = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
const metaspace = (scheme: string, split: boolean): JsonObject => {
  return { type: 'Metaspace', replacement: '▁', prepend_scheme: scheme, split };
};

/** The tokens in front of and behind every text. Throws FORMAT for one that the tokenizer does not have. */
function template(
  front: readonly string[],
  back: readonly string[],
  vocab: ReadonlyMap<string, number>,
  added: readonly AddedToken[],
  file: string,
): JsonObject {
  const named = [...front, ...back].map((token): [string, JsonObject] => {
    const id = added.find(({ content }) => content === token)?.id ?? vocab.get(token);
    if (id === undefined) throw new QFormerError('FORMAT', `${file}: has no token '${token}'`, { file, token });
    return [token, { id: token, ids: [id], tokens: [token] }];
  });
  const item = (id: string): JsonObject => ({ SpecialToken: { id, type_id: 0 } });
  const single = [...front.map(item), { Sequence: { id: 'A', type_id: 0 } }, ...back.map(item)];
  return { type: 'TemplateProcessing', single, pair: single, special_tokens: Object.fromEntries(named) };
}

/** The special tokens that a SentencePiece model marks as such. */
function intrinsic({ pieces }: SentencePieceModel): AddedToken[] {
  return pieces.flatMap(({ text, type }, id) => {
    if (type === PIECE.unknown || type === PIECE.control) return [addedToken(id, text, true)];
    return type === PIECE.userDefined ? [addedToken(id, text, false)] : [];
  });
}

/** The special tokens that a folder names, or `defaults`, where the vocabulary has them. */
function fromVocabulary(
  { config, special }: Side,
  vocab: ReadonlyMap<string, number>,
  defaults: readonly string[],
): AddedToken[] {
  const named = [special, config].flatMap((source) =>
    Object.entries(source).flatMap(([key, value]) => (key.endsWith('_token') ? (contentOf(value) ?? []) : [])),
  );
  const tokens = [...new Set([...defaults, ...named])];
  return tokens.flatMap((token) => (vocab.has(token) ? [addedToken(vocab.get(token)!, token, true)] : []));
}

/** `own`, and what added_tokens.json and tokenizer_config.json add or say otherwise; by id. */
function addedTokens(own: readonly AddedToken[], { config, added, special }: Side): AddedToken[] {
  const tokens = new Map(own.map((token) => [token.id, token]));
  const specialTexts = new Set([special, config].flatMap((source) => Object.values(source).flatMap(textsOf)));
  for (const [content, id] of Object.entries(added)) {
    if (isId(id)) tokens.set(id, addedToken(id, content, specialTexts.has(content)));
  }
  const decoder = config['added_tokens_decoder'];
  for (const [key, value] of Object.entries(isJsonObject(decoder) ? decoder : {})) {
    const content = contentOf(value);
    const id = Number(key);
    if (content === undefined || !isId(id)) continue;
    tokens.set(id, { ...addedToken(id, content, false), ...(value as JsonObject), id, content } as AddedToken);
  }
  return [...tokens.values()].sort((a, b) => a.id - b.id);
}

function addedToken(id: number, content: string, special: boolean): AddedToken {
  return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special };
}

function namedToken({ config, special }: Side, key: string, fallback: string): string {
  return contentOf(config[key]) ?? contentOf(special[key]) ?? fallback;
}

/** A token is written as a text or as an object that has one. */
function contentOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  return isJsonObject(value) && typeof value['content'] === 'string' ? value['content'] : undefined;
}

function textsOf(value: unknown): string[] {
  return [value].flat().flatMap((item) => contentOf(item) ?? []);
}

const isId = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function lines(file: string): string[] {
  const text = new TextDecoder().decode(readWholeFile(file, MAX_TEXT_BYTES));
  const all = text.split(/\r?\n/);
  return all.at(-1) === '' ? all.slice(0, -1) : all;
}
