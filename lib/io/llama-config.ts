// The LLaMA part of config.json (a bare checkpoint, or text_config of a vision-language one), defaults of transformers'
// LlamaConfig. Rotary parameters come as rope_theta + rope_scaling (transformers 4) or rope_parameters (5, which wins).

import type { JsonFields } from './json-fields.js';
import {
  BOUNDS,
  parseActivation,
  parseSpecialIds,
  requireMultiple,
  type Activation,
  type SpecialIds,
} from './model-fields.js';

/** How rotary frequencies are stretched beyond the trained context; positions in tokens. */
export type RopeScaling =
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositionEmbeddings: number;
    };

/** A LLaMA decoder. `vocabSize` is the number of embedding rows once the tensors are known, `configVocabSize` what the file says. */
export interface LlamaConfig extends SpecialIds {
  modelType: 'llama';
  hiddenSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  intermediateSize: number;
  vocabSize: number;
  configVocabSize: number;
  rmsNormEps: number;
  maxPositionEmbeddings: number;
  ropeTheta: number;
  ropeScaling?: RopeScaling;
  tieWordEmbeddings: boolean;
  hiddenAct: Activation;
}

const THETA = { min: 1, max: 1e12 };
const FACTOR = { min: 1, max: 1e6 };

/** Reads the fields of a LlamaConfig. Throws FORMAT and UNSUPPORTED naming the key path. */
export function parseLlamaConfig(fields: JsonFields): LlamaConfig {
  const hiddenSize = fields.integer('hidden_size', { ...BOUNDS.width, default: 4096 });
  const numHeads = fields.integer('num_attention_heads', { ...BOUNDS.heads, default: 32 });
  const numKvHeads = fields.integer('num_key_value_heads', { ...BOUNDS.heads, default: numHeads });
  const maxPositionEmbeddings = fields.integer('max_position_embeddings', { ...BOUNDS.positions, default: 2048 });
  const vocabSize = fields.integer('vocab_size', { ...BOUNDS.vocab, default: 32000 });
  requireMultiple(fields, 'num_attention_heads', numHeads, 'num_key_value_heads', numKvHeads);
  fields.requireBoolean('attention_bias', false);
  fields.requireBoolean('mlp_bias', false);
  return {
    modelType: 'llama',
    hiddenSize,
    numLayers: fields.integer('num_hidden_layers', { ...BOUNDS.layers, default: 32 }),
    numHeads,
    numKvHeads,
    headDim: parseHeadDim(fields, hiddenSize, numHeads),
    intermediateSize: fields.integer('intermediate_size', { ...BOUNDS.width, default: 11008 }),
    vocabSize,
    configVocabSize: vocabSize,
    rmsNormEps: fields.number('rms_norm_eps', { ...BOUNDS.eps, default: 1e-6 }),
    maxPositionEmbeddings,
    ...parseRope(fields, maxPositionEmbeddings),
    tieWordEmbeddings: fields.optionalBoolean('tie_word_embeddings') ?? false,
    hiddenAct: parseActivation(fields, 'hidden_act', 'silu'),
    ...parseSpecialIds(fields, { bosTokenId: 1, eosTokenIds: [2] }),
  };
}

function parseHeadDim(fields: JsonFields, hiddenSize: number, numHeads: number): number {
  const headDim = fields.optionalInteger('head_dim', BOUNDS.width);
  if (headDim === undefined) requireMultiple(fields, 'hidden_size', hiddenSize, 'num_attention_heads', numHeads);
  const result = headDim ?? hiddenSize / numHeads;
  if (result % 2 !== 0) throw fields.fault('head_dim', 'must be even (rotary embedding pairs its elements)', result);
  return result;
}

function parseRope(fields: JsonFields, maxPositions: number): Pick<LlamaConfig, 'ropeTheta' | 'ropeScaling'> {
  const parameters = fields.optionalObject('rope_parameters');
  const scalingFields = parameters ?? fields.optionalObject('rope_scaling');
  const topLevel = fields.number('rope_theta', { ...THETA, default: 10000 });
  const ropeTheta = parameters?.optionalNumber('rope_theta', THETA) ?? topLevel;
  for (const source of [fields, scalingFields]) {
    const rotary = source?.optionalNumber('partial_rotary_factor', { min: 0, max: 1 }) ?? 1;
    if (rotary !== 1) throw source!.unsupported('partial_rotary_factor', rotary, 'only 1');
  }
  const ropeScaling = scalingFields && parseScaling(scalingFields, maxPositions);
  return ropeScaling === undefined ? { ropeTheta } : { ropeTheta, ropeScaling };
}

function parseScaling(fields: JsonFields, maxPositions: number): RopeScaling | undefined {
  const key = fields.raw('rope_type') === undefined ? 'type' : 'rope_type';
  const type = fields.optionalString(key) ?? 'default';
  switch (type) {
    case 'default':
      return undefined;
    case 'linear':
      return { type, factor: fields.number('factor', FACTOR) };
    case 'llama3':
      return parseLlama3(fields, maxPositions);
    default:
      throw fields.unsupported(key, type, 'known: default, linear, llama3');
  }
}

function parseLlama3(fields: JsonFields, maxPositions: number): RopeScaling {
  const lowFreqFactor = fields.number('low_freq_factor', { min: 1e-6, max: 1e6 });
  const highFreqFactor = fields.number('high_freq_factor', { min: 1e-6, max: 1e6 });
  if (highFreqFactor <= lowFreqFactor) {
    throw fields.fault('high_freq_factor', `must exceed low_freq_factor (${lowFreqFactor})`, highFreqFactor);
  }
  return {
    type: 'llama3',
    factor: fields.number('factor', FACTOR),
    lowFreqFactor,
    highFreqFactor,
    originalMaxPositionEmbeddings: fields.integer('original_max_position_embeddings', {
      ...BOUNDS.positions,
      default: maxPositions,
    }),
  };
}
