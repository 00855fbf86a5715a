// The options of the public API: their types, and one table of rules that checks every value by name and by range.
// Misspelt names are refused (a silently ignored `maxTokens` costs an afternoon), and so are values that JavaScript would
// let through: NaN, negative counts, numbers in strings. The ranges are those of the logits processors they feed.

import { checkOptions, describe, QFormerError } from './errors.js';

/** How far loading is: `loaded` and `total` are bytes of weights. */
export interface LoadProgress {
  phase: 'open' | 'weights' | 'ready';
  loaded: number;
  total: number;
}

/** Options of `loadModel`. */
export interface LoadOptions {
  /** Where to run; `auto` takes the fastest device that works here. Default `auto`. */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;
  /** Type of the weights in memory; `auto` keeps the checkpoint's and uses the file in place. Default `auto`. */
  dtype?: 'auto' | 'f32' | 'f16' | 'bf16';
  /** CPU threads of the process-wide pool. Default: one per physical core. */
  threads?: number;
  /** Tokens that fit into the key/value cache, for all requests together. */
  kvCacheTokens?: number;
  /** Most requests that one step computes together. */
  maxBatchSize?: number;
  /** Largest encoded image that is accepted, in bytes. */
  maxImageBytes?: number;
  /** Largest image that is decoded, in pixels. */
  maxImagePixels?: number;
  /** Fetch images from http(s) URLs. Default false: a URL from outside must not make a server send requests. */
  allowHttp?: boolean;
  /** Aborts the loading; the promise rejects with ABORTED and everything is released. */
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
}

/** Options of one request. Without `temperature`, `topK`, `topP` or `minP` the most likely token is taken (greedy). */
export interface GenerateOptions {
  /** Most tokens to generate. Default: the checkpoint's `max_new_tokens`, else 48. */
  maxNewTokens?: number;
  /** The end of the answer is not accepted before so many tokens. Default 0. */
  minNewTokens?: number;
  /** 0 is greedy. Default: 1 when `topK`, `topP` or `minP` is given, else the checkpoint's when it asks for sampling, else 0. */
  temperature?: number;
  /** Keep the k most likely tokens; 0 keeps all. */
  topK?: number;
  /** Keep the most likely tokens whose probabilities together reach p; 1 keeps all. */
  topP?: number;
  /** Keep tokens at least p times as likely as the most likely one; 0 keeps all. */
  minP?: number;
  /** Above 1 makes tokens that already occurred, in the prompt too, less likely. */
  repetitionPenalty?: number;
  /** No sequence of n tokens occurs twice; 0 is off. */
  noRepeatNgramSize?: number;
  /** Words that never occur in the answer. */
  badWords?: string[];
  /** The answer ends before any of these. */
  stop?: string | string[];
  /** Integer in [0, 2^53); the same request with the same seed gives the same bytes. Default: random, in the result. */
  seed?: number;
  /** Return the log-probability of each token (true), and of the n most likely ones (a number, at most 20). */
  logprobs?: boolean | number;
  /** Cancels the request; it rejects with ABORTED. */
  signal?: AbortSignal;
  /** The text is the whole prompt: no template around it. Default false. */
  raw?: boolean;
  /** Turn photographs upright by their EXIF orientation. Default false, as the reference implementation. */
  exif?: boolean;
  /** Generate `maxNewTokens` tokens whatever the model says (for measurements). Default false. */
  ignoreEos?: boolean;
}

/** Options of `Model.caption`. */
export interface CaptionOptions extends GenerateOptions {
  /** Language of the built-in caption prompt. Default: the first one the model has. */
  lang?: string;
  /** Prompt to use instead of the built-in one. */
  prompt?: string;
}

/** Returns what a value must be when `value` is not that. */
type Rule = (value: unknown) => string | undefined;

const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);

function numberIn(min: number, max: number, excludeMin = false): Rule {
  const bound = Number.isFinite(max) ? ` and at most ${max}` : '';
  const text = `a finite number ${excludeMin ? 'above' : 'of at least'} ${min}${bound}`;
  return (value) => (isNumber(value) && (excludeMin ? value > min : value >= min) && value <= max ? undefined : text);
}

function integerIn(min: number, max = Number.MAX_SAFE_INTEGER): Rule {
  const text = `an integer of at least ${min}${max === Number.MAX_SAFE_INTEGER ? '' : ` and at most ${max}`}`;
  return (value) => (Number.isSafeInteger(value) && Number(value) >= min && Number(value) <= max ? undefined : text);
}

const oneOf =
  (allowed: readonly string[], pattern?: RegExp, patternText = ''): Rule =>
  (value) =>
    typeof value === 'string' && (allowed.includes(value) || pattern?.test(value))
      ? undefined
      : `one of ${allowed.join(', ')}${patternText}`;

const typed =
  (type: 'boolean' | 'string' | 'function', text: string): Rule =>
  (value) =>
    typeof value === type ? undefined : text;

const nonEmptyString = (value: unknown) => typeof value === 'string' && value.length > 0;

const strings =
  (text: string, single: boolean): Rule =>
  (value) =>
    (single && nonEmptyString(value)) || (Array.isArray(value) && value.every(nonEmptyString)) ? undefined : text;

const boolean = typed('boolean', 'true or false');
const signal: Rule = (value) =>
  value instanceof AbortSignal ? undefined : 'an AbortSignal';

const loadRules: Record<keyof LoadOptions, Rule> = {
  device: oneOf(['auto', 'cpu', 'cuda'], /^cuda:\d{1,3}$/, ', cuda:N'),
  dtype: oneOf(['auto', 'f32', 'f16', 'bf16']),
  threads: integerIn(1, 1024),
  kvCacheTokens: integerIn(1, 2 ** 31 - 1),
  maxBatchSize: integerIn(1, 4096),
  maxImageBytes: integerIn(1),
  maxImagePixels: integerIn(1),
  allowHttp: boolean,
  signal,
  onProgress: typed('function', 'a function'),
};

const generateRules: Record<keyof GenerateOptions, Rule> = {
  maxNewTokens: integerIn(1, 2 ** 31 - 1),
  minNewTokens: integerIn(0, 2 ** 31 - 1),
  temperature: numberIn(0, 1000),
  topK: integerIn(0, 2 ** 31 - 1),
  topP: numberIn(0, 1, true),
  minP: numberIn(0, 1),
  repetitionPenalty: numberIn(0, 1000, true),
  noRepeatNgramSize: integerIn(0, 2 ** 31 - 1),
  badWords: strings('an array of non-empty strings', false),
  stop: strings('a non-empty string or an array of them', true),
  seed: integerIn(0),
  logprobs: (value) => (typeof value === 'boolean' ? undefined : integerIn(0, 20)(value) && 'true, false or 0 to 20'),
  signal,
  raw: boolean,
  exif: boolean,
  ignoreEos: boolean,
};

const captionRules: Record<keyof CaptionOptions, Rule> = {
  ...generateRules,
  lang: typed('string', 'a string'),
  prompt: typed('string', 'a string'),
};

/** Checks names and values of `options`. Throws INVALID_ARGUMENT; `details` holds `option` and `value`. */
function checkAgainst(where: string, options: unknown, rules: Record<string, Rule>): void {
  checkOptions(where, options, Object.keys(rules));
  for (const [option, value] of Object.entries(options ?? {})) {
    const expected = value === undefined ? undefined : rules[option]!(value);
    if (expected === undefined) continue;
    const message = `${where}: option '${option}' must be ${expected}, got ${describe(value)}`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option, value });
  }
}

/** Throws INVALID_ARGUMENT where `options` are not LoadOptions. */
export function checkLoadOptions(options: LoadOptions | undefined): void {
  checkAgainst('loadModel', options, loadRules);
}

/** Throws INVALID_ARGUMENT where `options` are not GenerateOptions; `more` names options the caller reads itself. */
export function checkGenerateOptions(where: string, options: GenerateOptions | undefined, more: string[] = []): void {
  checkAgainst(where, options, { ...generateRules, ...Object.fromEntries(more.map((name) => [name, () => undefined])) });
  checkLengths(where, options);
}

/** Throws INVALID_ARGUMENT where `options` are not CaptionOptions. */
export function checkCaptionOptions(where: string, options: CaptionOptions | undefined): void {
  checkAgainst(where, options, captionRules);
  checkLengths(where, options);
}

function checkLengths(where: string, options: GenerateOptions | undefined): void {
  const { minNewTokens, maxNewTokens } = options ?? {};
  if (minNewTokens === undefined || maxNewTokens === undefined || minNewTokens <= maxNewTokens) return;
  const message = `${where}: option 'minNewTokens' (${minNewTokens}) is above 'maxNewTokens' (${maxNewTokens})`;
  throw new QFormerError('INVALID_ARGUMENT', message, { option: 'minNewTokens', value: minNewTokens });
}

/** Throws INVALID_ARGUMENT where `text` is not a string; `what` names it in the message. */
export function checkText(where: string, what: string, text: unknown): asserts text is string {
  if (typeof text === 'string') return;
  throw new QFormerError('INVALID_ARGUMENT', `${where}: ${what} must be a string, got ${describe(text)}`);
}
