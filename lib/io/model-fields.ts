// Field types that every part of a model's config.json shares: bounds of sizes, activation names, token ids.

import type { JsonFields, NumberRule } from './json-fields.js';

/** Activation functions of the models; `gelu` is the erf form. */
export type Activation = 'gelu' | 'gelu_tanh' | 'relu' | 'silu';

/** Bounds of sizes; far above any published model. Token ids may be -1 in old files, which means none. */
export const BOUNDS = {
  layers: { min: 1, max: 1024 },
  heads: { min: 1, max: 4096 },
  width: { min: 1, max: 2 ** 20 },
  vocab: { min: 1, max: 2 ** 24 },
  positions: { min: 1, max: 2 ** 24 },
  eps: { min: Number.MIN_VALUE, max: 1 },
  tokenId: { min: -1, max: 2 ** 31 - 1 },
} as const satisfies Record<string, NumberRule>;

const ACTIVATIONS: ReadonlyMap<string, Activation> = new Map([
  ['gelu', 'gelu'],
  ['gelu_python', 'gelu'],
  ['gelu_new', 'gelu_tanh'],
  ['gelu_pytorch_tanh', 'gelu_tanh'],
  ['gelu_fast', 'gelu_tanh'],
  ['relu', 'relu'],
  ['silu', 'silu'],
  ['swish', 'silu'],
]);

/** The activation named by `key`. Throws FORMAT when it is no string, UNSUPPORTED when the function is unknown. */
export function parseActivation(fields: JsonFields, key: string, fallback: Activation): Activation {
  const name = fields.optionalString(key);
  if (name === undefined) return fallback;
  const activation = ACTIVATIONS.get(name);
  if (activation === undefined) throw fields.unsupported(key, name, `known: ${[...ACTIVATIONS.keys()].join(', ')}`);
  return activation;
}

/** Throws FORMAT unless `whole` is a multiple of `part`, the values of two keys. */
export function requireMultiple(fields: JsonFields, key: string, whole: number, partKey: string, part: number): void {
  if (whole % part !== 0) throw fields.fault(key, `must be a multiple of ${partKey} (${part})`, whole);
}

/** One token id; undefined when absent, null or negative. Throws FORMAT. */
export function parseTokenId(fields: JsonFields, key: string): number | undefined {
  const id = fields.optionalInteger(key, BOUNDS.tokenId);
  return id !== undefined && id >= 0 ? id : undefined;
}

/** The token ids under `key`, a number or a list; empty when absent or null. Throws FORMAT. */
export function parseTokenIds(fields: JsonFields, key: string): number[] {
  const value = fields.raw(key);
  if (value !== undefined && !Array.isArray(value) && !isTokenId(value)) {
    throw fields.fault(key, 'must be a token id or a list of them', value);
  }
  const ids = isTokenId(value) ? [value] : (fields.optionalList(key, 'token ids', isTokenId) ?? []);
  return [...new Set(ids)].filter((id) => id >= 0);
}

/** Ids with a meaning of their own. */
export interface SpecialIds {
  bosTokenId?: number;
  eosTokenIds: number[];
  padTokenId?: number;
}

/** The special ids of a language model: an absent one has its default in a sparse file, while null means that there is none. Throws FORMAT. */
export function parseSpecialIds(fields: JsonFields, defaults: SpecialIds): SpecialIds {
  const one = (key: string, fallback: number | undefined) => (fields.has(key) ? parseTokenId(fields, key) : fallback);
  const bosTokenId = one('bos_token_id', defaults.bosTokenId);
  const padTokenId = one('pad_token_id', defaults.padTokenId);
  return {
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    eosTokenIds: fields.has('eos_token_id') ? parseTokenIds(fields, 'eos_token_id') : [...defaults.eosTokenIds],
    ...(padTokenId === undefined ? {} : { padTokenId }),
  };
}

function isTokenId(value: unknown): value is number {
  const { min, max } = BOUNDS.tokenId;
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}
