// adapter_config.json of a PEFT LoRA adapter: what decides the result is read, what would change it in a way that is not
// implemented is refused, the rest (dropout, task, versions) is passed over. Which modules have an adapter is not read here: the
// tensors say so.
// Source: peft 0.21, tuners/lora/config.py and utils/other.py (get_pattern_key).

import { runInNewContext } from 'node:vm';
import { QFormerError } from '../errors.js';
import { isJsonObject, readJsonObject } from './files.js';
import { JsonFields } from './json-fields.js';

/** What an adapter's configuration says of a module. */
export interface AdapterConfig {
  /** Rank and scaling of the module with this path: alpha / rank, or alpha / √rank. Throws FORMAT for a pattern that cannot be used. */
  scalingOf(path: string): { rank: number; scaling: number };
}

const MAX_RANK = 65_536;
const MAX_ALPHA = 1e9;
/** For all patterns on one path, ms: a pattern may be made to backtrack for ever. */
const PATTERN_MS = 1000;
/** Initialisations that take what they put into the adapter out of the base weights. */
const CHANGES_BASE = /^(?:pissa|olora|loftq|corda|eva|lora_ga)/;
/** Variants of LoRA with other formulas; any value but these switches them on. */
const VARIANTS = [
  'layer_replication',
  'target_parameters',
  'trainable_token_indices',
  'alora_invocation_tokens',
  'arrow_config',
  'kasa_config',
  'monteclora_config',
  'velora_config',
  'use_qalora',
  'use_bdlora',
  'fan_in_fan_out',
];

type Pattern = [pattern: string, value: number];

/** Reads `file`. Throws IO, FORMAT naming the key, and UNSUPPORTED. */
export function readAdapterConfig(file: string): AdapterConfig {
  const fields = new JsonFields(file, readJsonObject(file));
  const type = fields.optionalString('peft_type');
  if (type !== 'LORA') throw fields.unsupported('peft_type', type, 'only LORA is');
  for (const key of VARIANTS) {
    const value = fields.raw(key);
    if (value !== undefined && value !== false) throw fields.unsupported(key, value);
  }
  const init = fields.raw('init_lora_weights');
  if (typeof init === 'string' && CHANGES_BASE.test(init)) {
    const hint = 'it changes the base weights; save the adapter converted to plain LoRA';
    throw fields.unsupported('init_lora_weights', init, hint);
  }
  const rank = fields.integer('r', { min: 1, max: MAX_RANK });
  const alpha = fields.number('lora_alpha', { min: -MAX_ALPHA, max: MAX_ALPHA });
  const isRankStabilised = fields.optionalBoolean('use_rslora') === true;
  const ranks = patterns(fields, 'rank_pattern');
  const alphas = patterns(fields, 'alpha_pattern');
  return {
    scalingOf: (path) => {
      const own = firstMatch(file, ranks, path) ?? rank;
      const scaling = (firstMatch(file, alphas, path) ?? alpha) / (isRankStabilised ? Math.sqrt(own) : own);
      return { rank: own, scaling };
    },
  };
}

function patterns(fields: JsonFields, key: string): Pattern[] {
  const object = fields.raw(key) ?? {};
  if (!isJsonObject(object)) throw fields.fault(key, 'must be an object', object);
  return Object.entries(object).map(([pattern, value]) => {
    const isRank = key === 'rank_pattern';
    const number = typeof value === 'number' ? value : NaN;
    const fits = isRank ? Number.isInteger(number) && number >= 1 && number <= MAX_RANK : Math.abs(number) <= MAX_ALPHA;
    if (!fits) throw fields.fault(`${key}['${pattern}']`, `must be ${isRank ? 'a rank' : 'a number'}`, value);
    return [pattern, number];
  });
}

/** The value of the first pattern that matches the end of the path, from a dot on. */
function firstMatch(file: string, patterns: readonly Pattern[], path: string): number | undefined {
  if (patterns.length === 0) return undefined;
  const sources = patterns.map(([pattern]) => `^(?:.*\\.)?(?:${pattern})$`);
  try {
    const find = 'sources.findIndex((source) => new RegExp(source).test(path))';
    const found = runInNewContext(find, { sources, path }, { timeout: PATTERN_MS }) as number;
    return patterns[found]?.[1];
  } catch (error) {
    const message = `${file}: a pattern cannot be used on ${path} (${(error as Error).message})`;
    throw new QFormerError('FORMAT', message, { file, patterns: patterns.map(([pattern]) => pattern) });
  }
}
