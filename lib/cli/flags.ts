// The flags that several commands share, and what they mean as options of the library.

import type { GenerateOptions, LoadOptions } from '../options.js';

/** Flags as the argument parser delivers them; absent ones are undefined. */
export interface CommonFlags {
  model?: string;
  languageModel?: string;
  kvCacheTokens?: number;
  memoryCheck?: boolean;
  device?: string;
  dtype?: string;
  quantize?: string;
  quantizeActivations?: boolean;
  adapter?: string;
  threads?: number;
  maxNewTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  seed?: number;
  numBeams?: number;
  lengthPenalty?: number;
  numReturnSequences?: number;
  by?: string;
  raw?: boolean;
  json?: boolean;
  lang?: string;
  prompt?: string;
  system?: string;
  output?: string;
  top?: number;
  /** True without a number: as many as `top`. */
  rerank?: number | true;
  image?: boolean;
}

/** The flags of `info`, which takes any number of adapters. */
export type InfoFlags = Pick<CommonFlags, 'languageModel' | 'dtype' | 'quantize' | 'kvCacheTokens' | 'json'> & {
  adapter?: string[];
};

/** The flags that are load options; their values are checked by `loadModel`. */
export function loadOptions(flags: Omit<CommonFlags, 'adapter'>): LoadOptions {
  const { languageModel, device, dtype, quantize, quantizeActivations, threads, kvCacheTokens, memoryCheck } = flags;
  const weights = { dtype, quantize, quantizeActivations };
  return { languageModel, device, ...weights, threads, kvCacheTokens, memoryCheck } as LoadOptions;
}

/** The flags that are options of a request; their values are checked by the request. */
export function generateOptions(flags: CommonFlags, signal: AbortSignal): GenerateOptions {
  const { maxNewTokens, temperature, topK, topP, seed, raw, adapter } = flags;
  const { numBeams, lengthPenalty, numReturnSequences } = flags;
  const search = { numBeams, lengthPenalty, numReturnSequences };
  return {
    maxNewTokens,
    temperature,
    topK,
    topP,
    seed,
    ...search,
    raw,
    signal,
    ...(adapter !== undefined && { adapter }),
  };
}
