// What one request asks for, and its validation. Pure: the main thread may call it to fail early, the worker calls it with
// the checkpoint's defaults. Every number is checked for type and range, so that nothing unusual reaches the kernels.

import { QFormerError, checkOptions, describe } from '../errors.js';

/** Sampling and stopping options of one request; every field is optional. */
export interface GenerateParams {
  /** New tokens at most. Default: the checkpoint's, else 128. */
  maxNewTokens?: number;
  /** The end-of-sequence token is banned, and stop strings are ignored, until this many new tokens exist. Default 0. */
  minNewTokens?: number;
  /** 0: greedy. Default: the checkpoint's where it says `do_sample`, else 0. */
  temperature?: number;
  /** Keep the k best tokens (ties kept); 0: off. */
  topK?: number;
  /** Keep the smallest set of tokens whose probability reaches p; 1: off. */
  topP?: number;
  /** Drop tokens below p times the best probability; 0: off. */
  minP?: number;
  /** Divides (multiplies where negative) the logits of tokens already present; 1: off. */
  repetitionPenalty?: number;
  /** Whether the penalty and n-grams see the prompt (image tokens included) as transformers ≥ 5 does, or only new tokens as LAVIS. Default true. */
  penalizePrompt?: boolean;
  /** No n-gram of this size occurs twice; 0: off. */
  noRepeatNgramSize?: number;
  /** Words (or token id lists) that are never produced. */
  badWords?: (string | number[])[];
  /** Generation ends in front of the first of these strings. */
  stop?: string | string[];
  /** Integer in [0, 2^53). Default: random, reported in the result. */
  seed?: number;
  /** Log-probabilities of the raw logits: true for the chosen token, n for the n best tokens as well (at most 20). */
  logprobs?: boolean | number;
  /** Do not stop at the end-of-sequence token. */
  ignoreEos?: boolean;
  /** Beam search with this many beams, which does not sample; its text comes as one piece at the end. 1: off. Default 1. */
  numBeams?: number;
  /** The best answers of a beam search to return, at most `numBeams`. Default 1. */
  numReturnSequences?: number;
  /** A beam's score is the sum of its log-probabilities / length ** lengthPenalty: above 0 long answers gain. Default 1. */
  lengthPenalty?: number;
  /**
   * When a beam search with `numBeams` finished answers ends: true: at once; false: when the best running beam is no better at its present length;
   * 'never': when it cannot become better at any length. Default false.
   */
  earlyStopping?: boolean | 'never';
}

/** GenerateParams with all defaults filled in. */
export interface ResolvedParams {
  maxNewTokens: number;
  minNewTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  penalizePrompt: boolean;
  noRepeatNgramSize: number;
  badWords: (string | number[])[];
  stop: string[];
  seed: number;
  /** -1: none; 0: the chosen token only; n: the n best as well. */
  logprobs: number;
  ignoreEos: boolean;
  /** 1: no beam search. */
  numBeams: number;
  numReturnSequences: number;
  lengthPenalty: number;
  earlyStopping: boolean | 'never';
}

/** The part of a checkpoint's generation_config.json that serves as defaults. */
export interface ParamDefaults {
  maxNewTokens?: number;
  minNewTokens?: number;
  doSample?: boolean;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  noRepeatNgramSize?: number;
}

/** The names of all request options, for `checkOptions`. */
export const PARAM_NAMES = [
  'maxNewTokens',
  'minNewTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'penalizePrompt',
  'noRepeatNgramSize',
  'badWords',
  'stop',
  'seed',
  'logprobs',
  'ignoreEos',
  'numBeams',
  'numReturnSequences',
  'lengthPenalty',
  'earlyStopping',
] as const satisfies readonly (keyof GenerateParams)[];

const MAX_TOKENS = 2 ** 31 - 1;
const MAX_LOGPROBS = 20;
/** Largest `numBeams`. */
export const MAX_BEAMS = 64;
/** Largest `lengthPenalty`, and smallest with a minus. */
export const MAX_LENGTH_PENALTY = 100;
const DEFAULT_MAX_NEW_TOKENS = 128;

/** Checks `params` and fills in defaults. Throws INVALID_ARGUMENT naming the option, its value and what is allowed. */
export function resolveParams(params: GenerateParams = {}, defaults: ParamDefaults = {}): ResolvedParams {
  checkOptions('generate', params, PARAM_NAMES);
  const numBeams = integer('numBeams', params.numBeams ?? 1, 1, MAX_BEAMS);
  checkBeamOptions(params, numBeams);
  const sampled = defaults.doSample === true && numBeams === 1;
  const maxNewTokens = integer(
    'maxNewTokens',
    params.maxNewTokens ?? defaults.maxNewTokens ?? DEFAULT_MAX_NEW_TOKENS,
    1,
    MAX_TOKENS,
  );
  return {
    maxNewTokens,
    minNewTokens: integer(
      'minNewTokens',
      params.minNewTokens ?? Math.min(defaults.minNewTokens ?? 0, maxNewTokens),
      0,
      maxNewTokens,
    ),
    temperature: number('temperature', params.temperature ?? (sampled ? (defaults.temperature ?? 1) : 0), 0, 1e4),
    topK: integer('topK', params.topK ?? (sampled ? (defaults.topK ?? 0) : 0), 0, MAX_TOKENS),
    topP: number('topP', params.topP ?? (sampled ? (defaults.topP ?? 1) : 1), 0, 1),
    minP: number('minP', params.minP ?? (sampled ? (defaults.minP ?? 0) : 0), 0, 1),
    repetitionPenalty: positive('repetitionPenalty', params.repetitionPenalty ?? defaults.repetitionPenalty ?? 1),
    penalizePrompt: boolean('penalizePrompt', params.penalizePrompt ?? true),
    noRepeatNgramSize: integer(
      'noRepeatNgramSize',
      params.noRepeatNgramSize ?? defaults.noRepeatNgramSize ?? 0,
      0,
      MAX_TOKENS,
    ),
    badWords: badWords(params.badWords ?? []),
    stop: stopStrings(params.stop ?? []),
    seed: integer('seed', params.seed ?? randomSeed(), 0, Number.MAX_SAFE_INTEGER),
    logprobs: logprobCount(params.logprobs),
    ignoreEos: boolean('ignoreEos', params.ignoreEos ?? false),
    numBeams,
    numReturnSequences: integer('numReturnSequences', params.numReturnSequences ?? 1, 1, numBeams),
    lengthPenalty: number('lengthPenalty', params.lengthPenalty ?? 1, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
    earlyStopping: params.earlyStopping === 'never' ? 'never' : earlyStopping(params.earlyStopping ?? false),
  };
}

/** Beam search neither samples nor reports log-probabilities token by token; its options mean nothing without it. */
function checkBeamOptions(params: GenerateParams, numBeams: number): void {
  const names =
    numBeams > 1
      ? (['temperature', 'topK', 'topP', 'minP', 'logprobs'] as const)
      : (['numReturnSequences', 'lengthPenalty', 'earlyStopping'] as const);
  const off = { temperature: 0, topK: 0, topP: 1, minP: 0, logprobs: false };
  const refused = names.find((name) => {
    return params[name] !== undefined && params[name] !== off[name as keyof typeof off];
  });
  if (refused === undefined) return;
  const why = numBeams > 1 ? 'cannot be combined with beam search, which does not sample' : 'needs numBeams above 1';
  throw new QFormerError('INVALID_ARGUMENT', `${refused} ${why}`, { option: refused, numBeams });
}

function invalid(name: string, value: unknown, wanted: string): QFormerError {
  return new QFormerError('INVALID_ARGUMENT', `${name} must be ${wanted}, got ${describe(value)}`, { option: name });
}

function number(name: string, value: unknown, low: number, high: number): number {
  if (typeof value === 'number' && value >= low && value <= high) return value;
  throw invalid(name, value, `a number from ${low} to ${high}`);
}

function integer(name: string, value: unknown, low: number, high: number): number {
  if (Number.isSafeInteger(value) && (value as number) >= low && (value as number) <= high) return value as number;
  throw invalid(name, value, `an integer from ${low} to ${high}`);
}

function positive(name: string, value: unknown): number {
  if (typeof value === 'number' && value > 0 && Number.isFinite(value)) return value;
  throw invalid(name, value, 'a positive number');
}

function boolean(name: string, value: unknown): boolean {
  if (typeof value === 'boolean') return value;
  throw invalid(name, value, 'true or false');
}

function earlyStopping(value: unknown): boolean {
  if (typeof value === 'boolean') return value;
  throw invalid('earlyStopping', value, "true, false or 'never'");
}

function stopStrings(value: unknown): string[] {
  const list = typeof value === 'string' ? [value] : value;
  if (Array.isArray(list) && list.every((text) => typeof text === 'string' && text !== '')) return list as string[];
  throw invalid('stop', value, 'a non-empty string or an array of them');
}

function badWords(value: unknown): (string | number[])[] {
  const isIds = (word: unknown): boolean =>
    Array.isArray(word) && word.length > 0 && word.every((id) => Number.isSafeInteger(id) && id >= 0);
  if (Array.isArray(value) && value.every((word) => (typeof word === 'string' && word !== '') || isIds(word))) {
    return value as (string | number[])[];
  }
  throw invalid('badWords', value, 'an array of non-empty strings');
}

function logprobCount(value: unknown): number {
  if (value === undefined || value === false) return -1;
  return value === true ? 0 : integer('logprobs', value, 0, MAX_LOGPROBS);
}

function randomSeed(): number {
  return Math.floor(Math.random() * 2 ** 48);
}
