// The options of the public API, checked by name and by value before anything is started. Misspelt names are refused (a
// silently ignored `maxTokens` costs an afternoon). What concerns sampling and stopping is defined in engine/params.ts;
// here is the rest: loading, images, templates.

import { withCaptionDefaults, type CaptionDefaults } from './caption-defaults.js';
import type { ChatMessage } from './chat.js';
import { PARAM_NAMES, resolveParams, type GenerateParams, type ParamDefaults } from './engine/params.js';
import { checkOptions, describe, QFormerError } from './errors.js';
import type { LoadProgress } from './engine/protocol.js';
import type { ModelImage } from './encoded-image.js';

/** Options of `loadModel`. */
export interface LoadOptions {
  /** Folder of the language model, where the checkpoint folder holds only the visual part (Ziya-Visual). */
  languageModel?: string;
  /** Where to run; `auto` takes the fastest device that works here. Default `auto`. */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;
  /** Type of the weights in memory; `auto` keeps the checkpoint's and uses the file in place. Default `auto`. */
  dtype?: 'auto' | 'f32' | 'f16' | 'bf16';
  /** Quantise linear layers while loading: those of the language model to 8 or 4 bits, of the vision tower to 8. Default: not. */
  quantize?: 'int8' | 'int4';
  /** With `quantize`, on the CPU: round what those layers are multiplied with to 8 bits instead of 16. Faster, less exact. Default false. */
  quantizeActivations?: boolean;
  /** CPU threads; the pool is one per process. Default: one per processor. */
  threads?: number;
  /** Tokens that fit into the key/value cache, for all requests together. Default: from context, batch and free memory. */
  kvCacheTokens?: number;
  /** Most requests that one step computes together. Default 16. */
  maxBatchSize?: number;
  /** Reuse the keys and values of equal prompt prefixes. Default true. */
  prefixCache?: boolean;
  /** Side of the square that images are resized to, in pixels. Default: the checkpoint's; for another, positions are interpolated. */
  imageSize?: number;
  /** Refuse a checkpoint that cannot fit into memory (OUT_OF_MEMORY) before it is loaded. Default true. */
  memoryCheck?: boolean;
  /** Largest encoded image that is accepted, in bytes. */
  maxImageBytes?: number;
  /** Largest image that is decoded, in pixels. */
  maxImagePixels?: number;
  /** Fetch images from http(s) URLs. Default false: a URL from outside must not make a server send requests. */
  allowHttp?: boolean;
  /** Aborts the loading: the promise rejects with ABORTED and everything is released. */
  signal?: AbortSignal;
  /** Called while loading; `loaded` and `total` are bytes of weights. */
  onProgress?: (progress: LoadProgress) => void;
}

/** Options of `estimateMemory`: those of a load that matter. */
export interface EstimateOptions extends Pick<
  LoadOptions,
  'languageModel' | 'dtype' | 'quantize' | 'kvCacheTokens' | 'maxBatchSize'
> {
  /** Folders of adapters that will be loaded. */
  adapters?: string[];
}

/**
 * Options of one request. Greedy unless `temperature` is above 0; naming `topK`, `topP` or `minP` without a temperature
 * means temperature 1.
 */
export interface GenerateOptions extends GenerateParams {
  /** Cancels the request; it rejects with ABORTED. */
  signal?: AbortSignal;
  /** The text is the whole prompt: no template around it. Default false. */
  raw?: boolean;
  /** Turn photographs upright by their EXIF orientation. Default false, as the reference implementation. */
  exif?: boolean;
  /** Name of a loaded adapter (`Model.adapters`) that the request uses. Default: none. */
  adapter?: string;
}

/** Options of `Model.caption`. BLIP-2 and InstructBLIP caption with five beams unless told otherwise; see docs/captioning.md. */
export interface CaptionOptions extends GenerateOptions {
  /** Language of the built-in caption prompt. Default: the first one the model has. */
  lang?: string;
  /** Prompt to use instead of the built-in one. */
  prompt?: string;
}

/** Options of `Model.generate`. */
export interface PromptOptions extends GenerateOptions {
  /** The image the prompt is about; none for a text-only model. */
  image?: ModelImage;
}

/** Options of `Model.chat`. */
export interface ChatOptions {
  /** The image the chat is about: an array of one, because these models take one image per prompt. */
  images?: ModelImage[];
  /** Text before the first turn. */
  system?: string;
  /** Earlier turns, as `Chat.history` gives them: a user's and an assistant's message in turn. */
  history?: ChatMessage[];
}

/** Options of `Model.rank`. */
export interface RankOptions {
  /** What the order goes by: the log-probability of the whole candidate, or its mean over the tokens. Default `sum`. */
  by?: 'sum' | 'mean';
  /** The question is the whole prompt: no template around it. Default false. */
  raw?: boolean;
  /** Name of a loaded adapter (`Model.adapters`) that the scores are computed with. Default: none. */
  adapter?: string;
  /** Cancels the call; it rejects with ABORTED. */
  signal?: AbortSignal;
  /** Turn photographs upright by their EXIF orientation. Default false, as the reference implementation. */
  exif?: boolean;
}

/** Options of `Model.match`, `similarity` and `encodeImage`. */
export interface RetrievalOptions {
  /** Cancels the call; it rejects with ABORTED. */
  signal?: AbortSignal;
  /** Turn photographs upright by their EXIF orientation. Default false, as the reference implementation. */
  exif?: boolean;
}

/** Options of `Model.embed`. */
export interface EmbedOptions extends RetrievalOptions {
  /** `none`: an image has a vector per query token, of which the best one counts; `mean`: their mean, scaled to length 1. Default `none`. */
  pool?: 'none' | 'mean';
}

/** Options of `ImageIndex.search`. */
export interface SearchOptions {
  /** Most results. Default 10. */
  top?: number;
  /** This many of the best are put in order by the matching head, which reads their pictures again. Default 0. */
  rerank?: number;
  /** The picture of an id, for `rerank`. Default: the id is its path. */
  imageOf?: (id: string) => ModelImage;
  /** Cancels the search; it rejects with ABORTED. */
  signal?: AbortSignal;
}

/** What `Model.embed` takes: images or texts. */
export type EmbedInput =
  { images: readonly ModelImage[]; texts?: undefined } | { texts: readonly string[]; images?: undefined };

/** Says what a value must be when `value` is not that. */
type Rule = (value: unknown) => string | undefined;

const rule =
  (text: string, accepts: (value: unknown) => boolean): Rule =>
  (value) =>
    accepts(value) ? undefined : text;

const count = (max = Number.MAX_SAFE_INTEGER): Rule =>
  rule(
    max === Number.MAX_SAFE_INTEGER ? 'an integer of at least 1' : `an integer from 1 to ${max}`,
    (value) => Number.isSafeInteger(value) && Number(value) >= 1 && Number(value) <= max,
  );

const boolean = rule('true or false', (value) => typeof value === 'boolean');
const string = rule('a string', (value) => typeof value === 'string');
const signal = rule('an AbortSignal', (value) => value instanceof AbortSignal);
const anything: Rule = () => undefined;

const loadRules: Record<keyof LoadOptions, Rule> = {
  languageModel: rule('the path of a folder', (value) => typeof value === 'string' && value !== ''),
  // emulated, emulated-unchecked: the GPU kernels on the host, for tests; there only where QFORMER_BACKENDS names their libraries
  device: rule('one of auto, cpu, cuda, cuda:N', (value) =>
    /^(?:auto|cpu|cuda|cuda:\d{1,3}|emulated(?:-unchecked)?)$/.test(String(value)),
  ),
  dtype: rule('one of auto, f32, f16, bf16', (value) => /^(?:auto|f32|f16|bf16)$/.test(String(value))),
  quantize: rule('int8 or int4', (value) => value === 'int8' || value === 'int4'),
  quantizeActivations: boolean,
  threads: count(1024),
  kvCacheTokens: count(2 ** 31 - 1),
  maxBatchSize: count(4096),
  prefixCache: boolean,
  imageSize: count(4096),
  memoryCheck: boolean,
  maxImageBytes: count(),
  maxImagePixels: count(),
  allowHttp: boolean,
  signal,
  onProgress: rule('a function', (value) => typeof value === 'function'),
};

const { languageModel, dtype, quantize, kvCacheTokens, maxBatchSize } = loadRules;
const estimateRules: Record<keyof EstimateOptions, Rule> = {
  ...{ languageModel, dtype, quantize, kvCacheTokens, maxBatchSize },
  adapters: rule(
    'an array of folders',
    (value) => Array.isArray(value) && value.every((dir) => typeof dir === 'string'),
  ),
};

const requestRules = { signal, raw: boolean, exif: boolean, adapter: string };
const captionRules = { ...requestRules, lang: string, prompt: string };
const promptRules = { ...requestRules, image: anything };
const retrievalRules: Record<keyof RetrievalOptions, Rule> = { signal, exif: boolean };
const rankRules: Record<keyof RankOptions, Rule> = {
  ...retrievalRules,
  raw: boolean,
  adapter: string,
  by: rule('sum or mean', (value) => value === 'sum' || value === 'mean'),
};
const embedRules: Record<keyof EmbedOptions, Rule> = {
  ...retrievalRules,
  pool: rule('none or mean', (value) => value === 'none' || value === 'mean'),
};
const searchRules: Record<keyof SearchOptions, Rule> = {
  top: count(),
  rerank: rule('an integer of at least 0', (value) => Number.isSafeInteger(value) && Number(value) >= 0),
  imageOf: rule('a function', (value) => typeof value === 'function'),
  signal,
};
const chatRules: Record<keyof ChatOptions, Rule> = {
  images: rule('an array of one image', (value) => Array.isArray(value) && value.length <= 1),
  system: string,
  // Checked message by message where it is read.
  history: anything,
};

/** Throws INVALID_ARGUMENT where `options` are not LoadOptions. */
export function checkLoadOptions(options: LoadOptions): void {
  checkOptions('loadModel', options, Object.keys(loadRules));
  checkValues('loadModel', options, loadRules);
}

/** Throws INVALID_ARGUMENT where `options` are not EstimateOptions. */
export function checkEstimateOptions(options: EstimateOptions): void {
  checkOptions('estimateMemory', options, Object.keys(estimateRules));
  checkValues('estimateMemory', options, estimateRules);
}

/** Throws INVALID_ARGUMENT where `options` are not ChatOptions. */
export function checkChatOptions(options: ChatOptions): void {
  checkOptions('chat', options, Object.keys(chatRules));
  checkValues('chat', options, chatRules);
}

/** Throws INVALID_ARGUMENT where `options` are not RetrievalOptions. */
export function checkRetrievalOptions(where: string, options: RetrievalOptions): void {
  checkOptions(where, options, Object.keys(retrievalRules));
  checkValues(where, options, retrievalRules);
}

/** Throws INVALID_ARGUMENT where the arguments of `rank` are not what it takes. */
export function checkRank(question: string, candidates: readonly string[], options: RankOptions): void {
  checkOptions('rank', options, Object.keys(rankRules));
  checkValues('rank', options, rankRules);
  checkText('rank', 'the question', question);
  if (!Array.isArray(candidates) || candidates.length === 0) {
    throw new QFormerError('INVALID_ARGUMENT', 'rank: the candidates must be a non-empty array of texts');
  }
  candidates.forEach((candidate, i) => checkText('rank', `candidate ${i}`, candidate));
}

/** Throws INVALID_ARGUMENT where `options` are not SearchOptions. */
export function checkSearchOptions(options: SearchOptions): void {
  checkOptions('search', options, Object.keys(searchRules));
  checkValues('search', options, searchRules);
}

/** Throws INVALID_ARGUMENT where the arguments of `embed` are not what it takes. */
export function checkEmbed(input: EmbedInput, options: EmbedOptions): void {
  checkOptions('embed', options, Object.keys(embedRules));
  checkValues('embed', options, embedRules);
  checkOptions('embed', input, ['images', 'texts']);
  if (Array.isArray(input?.images) !== Array.isArray(input?.texts)) return;
  throw new QFormerError('INVALID_ARGUMENT', 'embed: takes { images } or { texts }, an array of one of them');
}

/** Throws INVALID_ARGUMENT where `options` are not GenerateOptions. Returns what concerns the engine. */
export function requestParams(where: string, options: GenerateOptions): GenerateParams {
  return checkRequest(where, options, requestRules);
}

/** Fills in what asking for top-k, top-p or min-p implies: sampling, at temperature 1 unless the checkpoint has its own. */
export function withTemperature(params: GenerateParams, defaults: ParamDefaults): GenerateParams {
  const { temperature, topK, topP, minP } = params;
  const implied = temperature === undefined && (topK ?? topP ?? minP) !== undefined && defaults.doSample !== true;
  return implied ? { ...params, temperature: 1 } : params;
}

/** As `requestParams`, for CaptionOptions; `defaults` are those of the model. */
export function captionParams(options: CaptionOptions, defaults: CaptionDefaults = {}): GenerateParams {
  return checkRequest('caption', options, captionRules, (params) => withCaptionDefaults(params, defaults));
}

/** As `requestParams`, for PromptOptions. */
export function promptParams(options: PromptOptions): GenerateParams {
  return checkRequest('generate', options, promptRules);
}

function checkRequest(
  where: string,
  options: GenerateOptions,
  rules: Record<string, Rule>,
  complete = (params: GenerateParams): GenerateParams => params,
): GenerateParams {
  checkOptions(where, options, [...PARAM_NAMES, ...Object.keys(rules)]);
  checkValues(where, options, rules);
  const given = Object.entries(options).filter(([name, value]) => value !== undefined && !(name in rules));
  const params = complete(Object.fromEntries(given) as GenerateParams);
  // The engine fills in the checkpoint's defaults later; checking here makes a wrong value throw at the call.
  resolveParams(params);
  return params;
}

function checkValues(where: string, options: object, rules: Record<string, Rule>): void {
  for (const [option, value] of Object.entries(options)) {
    const expected = value === undefined ? undefined : rules[option]?.(value);
    if (expected === undefined) continue;
    const message = `${where}: option '${option}' must be ${expected}, got ${describe(value)}`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option, value });
  }
}

/** Throws INVALID_ARGUMENT where `text` is not a string or, unless `empty` is allowed, has no visible character. */
export function checkText(where: string, what: string, text: unknown, empty = false): asserts text is string {
  if (typeof text !== 'string') {
    throw new QFormerError('INVALID_ARGUMENT', `${where}: ${what} must be a string, got ${describe(text)}`);
  }
  if (!empty && text.trim() === '') throw new QFormerError('INVALID_ARGUMENT', `${where}: ${what} is empty`);
}
