// The small files beside config.json: generation_config.json (defaults of decoding) and the image processor's settings, which
// live in preprocessor_config.json or, in newer folders, under `image_processor` of processor_config.json.
// Facts: BlipImageProcessor resizes straight to a square with bicubic, rescales by 1/255 and normalises with CLIP's constants.

import { QFormerError } from '../errors.js';
import type { JsonFields } from './json-fields.js';
import { BOUNDS, parseTokenId, parseTokenIds, type SpecialIds } from './model-fields.js';

/** Decoding defaults a checkpoint recommends; absent entries are the engine's to choose. */
export interface GenerationDefaults extends SpecialIds {
  /** Counts new tokens only. */
  maxNewTokens?: number;
  minNewTokens?: number;
  /** Counts the prompt, image tokens included. */
  maxLength?: number;
  doSample?: boolean;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  noRepeatNgramSize?: number;
}

/** How pixels become model input: resize to `imageSize`², then `(u8 * rescaleFactor - mean) / std` per channel. */
export interface PreprocessorConfig {
  imageSize: number;
  rescaleFactor: number;
  mean: [number, number, number];
  std: [number, number, number];
}

const CLIP_MEAN: [number, number, number] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [number, number, number] = [0.26862954, 0.26130258, 0.27577711];
const BICUBIC = 3;
const COUNT = { min: 0, max: 2 ** 31 - 1 };

/** Settings of generation_config.json. Throws FORMAT naming the key. */
export function parseGenerationDefaults(fields: JsonFields): GenerationDefaults {
  return {
    ...present('maxNewTokens', fields.optionalInteger('max_new_tokens', COUNT)),
    ...present('minNewTokens', fields.optionalInteger('min_new_tokens', COUNT)),
    ...present('maxLength', fields.optionalInteger('max_length', COUNT)),
    ...present('doSample', fields.optionalBoolean('do_sample')),
    ...present('temperature', fields.optionalNumber('temperature', { min: 0, max: 1e6 })),
    ...present('topK', fields.optionalInteger('top_k', COUNT)),
    ...present('topP', fields.optionalNumber('top_p', { min: 0, max: 1 })),
    ...present('minP', fields.optionalNumber('min_p', { min: 0, max: 1 })),
    ...present('repetitionPenalty', fields.optionalNumber('repetition_penalty', { min: 1e-6, max: 1e6 })),
    ...present('noRepeatNgramSize', fields.optionalInteger('no_repeat_ngram_size', COUNT)),
    eosTokenIds: parseTokenIds(fields, 'eos_token_id'),
    ...present('padTokenId', parseTokenId(fields, 'pad_token_id')),
    ...present('bosTokenId', parseTokenId(fields, 'bos_token_id')),
  };
}

/** Replaces the ids by `own`, and keeps the file's only where `own` has none (vision-language models: text_config decides). */
export function preferIds(defaults: GenerationDefaults, own: SpecialIds): GenerationDefaults {
  return {
    ...defaults,
    eosTokenIds: own.eosTokenIds.length > 0 ? own.eosTokenIds : defaults.eosTokenIds,
    ...present('bosTokenId', own.bosTokenId ?? defaults.bosTokenId),
    ...present('padTokenId', own.padTokenId ?? defaults.padTokenId),
  };
}

/** Settings of the image processor; `imageSize` stands in for an absent size. Throws FORMAT and UNSUPPORTED naming the key. */
export function parsePreprocessorConfig(fields: JsonFields, imageSize: number): PreprocessorConfig {
  fields.requireBoolean('do_resize', true);
  fields.requireBoolean('do_center_crop', false);
  fields.requireBoolean('do_pad', false);
  const resample = fields.integer('resample', { min: 0, max: 5, default: BICUBIC });
  if (resample !== BICUBIC) throw fields.unsupported('resample', resample, 'only 3, bicubic');
  const rescale = fields.optionalBoolean('do_rescale') ?? true;
  const normalize = fields.optionalBoolean('do_normalize') ?? true;
  const rescaleFactor = fields.number('rescale_factor', { min: 1e-9, max: 1e9, default: 1 / 255 });
  const mean = triple(fields, 'image_mean', CLIP_MEAN, -1e6);
  const std = triple(fields, 'image_std', CLIP_STD, 1e-9);
  return {
    imageSize: parseSize(fields) ?? imageSize,
    rescaleFactor: rescale ? rescaleFactor : 1,
    mean: normalize ? mean : [0, 0, 0],
    std: normalize ? std : [1, 1, 1],
  };
}

/** What applies to a model whose folder says nothing about images. */
export function defaultPreprocessor(imageSize: number): PreprocessorConfig {
  return { imageSize, rescaleFactor: 1 / 255, mean: CLIP_MEAN, std: CLIP_STD };
}

// `size` is {height, width}; very old folders have a number
function parseSize(fields: JsonFields): number | undefined {
  const rule = { min: 1, max: 8192 };
  if (typeof fields.raw('size') === 'number') return fields.integer('size', rule);
  const size = fields.optionalObject('size');
  if (size === undefined) return undefined;
  const height = size.integer('height', rule);
  const width = size.integer('width', rule);
  if (height !== width) throw size.unsupported('width', width, `images are resized to a square, height is ${height}`);
  return height;
}

function triple(
  fields: JsonFields,
  key: string,
  fallback: [number, number, number],
  min: number,
): [number, number, number] {
  if (typeof fields.raw(key) === 'number') {
    const value = fields.number(key, { min, max: 1e6 });
    return [value, value, value];
  }
  const isValue = (value: unknown): value is number => typeof value === 'number' && value >= min && value <= 1e6;
  const values = fields.optionalList(key, `three numbers from ${min} to 1e6`, isValue);
  if (values === undefined) return fallback;
  if (values.length !== 3) throw fields.fault(key, 'must have three numbers', values);
  return values as [number, number, number];
}

function present<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V };
}

/** Throws FORMAT when the processor would insert another number of image tokens than the model has queries. */
export function checkQueryTokens(processor: JsonFields, numQueryTokens: number): void {
  const count = processor.optionalInteger('num_query_tokens', BOUNDS.heads);
  if (count === undefined || count === numQueryTokens) return;
  throw new QFormerError(
    'FORMAT',
    `${processor.file}: num_query_tokens is ${count}, but config.json says ${numQueryTokens}`,
    { file: processor.file, key: 'num_query_tokens' },
  );
}
