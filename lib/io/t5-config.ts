// The T5 part of config.json (a bare checkpoint, or text_config of a BLIP-2 or InstructBLIP one), defaults of transformers'
// T5Config. `feed_forward_proj` implies an activation, `dense_act_fn` and `is_gated_act` say it outright and win: plain Flan-T5
// has "gated-gelu", the tanh form, and the published vision-language files override it with the erf form.

import type { JsonFields } from './json-fields.js';
import {
  BOUNDS,
  parseActivation,
  parseSpecialIds,
  parseTokenId,
  type Activation,
  type SpecialIds,
} from './model-fields.js';

/** A T5 encoder–decoder. `vocabSize` is the number of embedding rows once the tensors are known, `configVocabSize` what the file says. */
export interface T5Config extends SpecialIds {
  modelType: 't5';
  hiddenSize: number;
  numEncoderLayers: number;
  /** Of the decoder. */
  numLayers: number;
  numHeads: number;
  /** Independent of hiddenSize / numHeads. */
  headDim: number;
  intermediateSize: number;
  vocabSize: number;
  configVocabSize: number;
  layerNormEps: number;
  /** What a request may ask of the cache by default, tokens; the model itself has no bound. */
  maxPositionEmbeddings: number;
  relativeBuckets: number;
  /** Distances from here on share a bucket, tokens. */
  relativeMaxDistance: number;
  gated: boolean;
  hiddenAct: Activation;
  /** Also scales what the head reads by hiddenSize^-0.5. */
  tieWordEmbeddings: boolean;
  decoderStartTokenId: number;
}

const MAX_POSITIONS = 4096;

/** Reads the fields of a T5Config. Throws FORMAT and UNSUPPORTED naming the key path. */
export function parseT5Config(fields: JsonFields): T5Config {
  const vocabSize = fields.integer('vocab_size', { ...BOUNDS.vocab, default: 32128 });
  const numEncoderLayers = fields.integer('num_layers', { ...BOUNDS.layers, default: 6 });
  const ids = parseSpecialIds(fields, { eosTokenIds: [1], padTokenId: 0 });
  return {
    modelType: 't5',
    hiddenSize: fields.integer('d_model', { ...BOUNDS.width, default: 512 }),
    numEncoderLayers,
    numLayers: fields.integer('num_decoder_layers', { ...BOUNDS.layers, default: numEncoderLayers }),
    numHeads: fields.integer('num_heads', { ...BOUNDS.heads, default: 8 }),
    headDim: fields.integer('d_kv', { ...BOUNDS.width, default: 64 }),
    intermediateSize: fields.integer('d_ff', { ...BOUNDS.width, default: 2048 }),
    vocabSize,
    configVocabSize: vocabSize,
    layerNormEps: fields.number('layer_norm_epsilon', { ...BOUNDS.eps, default: 1e-6 }),
    maxPositionEmbeddings: MAX_POSITIONS,
    ...parseRelativePositions(fields),
    ...parseFeedForward(fields),
    tieWordEmbeddings: fields.optionalBoolean('tie_word_embeddings') ?? true,
    // T5 starts from padding, also where an old file does not say so
    decoderStartTokenId: parseTokenId(fields, 'decoder_start_token_id') ?? ids.padTokenId ?? 0,
    ...ids,
  };
}

function parseRelativePositions(fields: JsonFields): Pick<T5Config, 'relativeBuckets' | 'relativeMaxDistance'> {
  const relativeBuckets = fields.integer('relative_attention_num_buckets', { min: 4, max: 4096, default: 32 });
  const relativeMaxDistance = fields.integer('relative_attention_max_distance', { min: 2, max: 2 ** 20, default: 128 });
  // one half of the buckets, in the decoder, stands for one distance each; the other half needs longer ones
  if (relativeMaxDistance <= relativeBuckets / 2) {
    const rule = `must exceed half of relative_attention_num_buckets (${relativeBuckets})`;
    throw fields.fault('relative_attention_max_distance', rule, relativeMaxDistance);
  }
  return { relativeBuckets, relativeMaxDistance };
}

function parseFeedForward(fields: JsonFields): Pick<T5Config, 'gated' | 'hiddenAct'> {
  const projection = fields.optionalString('feed_forward_proj') ?? 'relu';
  const implied = /^(gated-)?(relu|gelu|silu)$/.exec(projection);
  if (implied === null) throw fields.unsupported('feed_forward_proj', projection, 'relu, gelu, silu, gated-…');
  const fallback = projection === 'gated-gelu' ? 'gelu_tanh' : (implied[2] as Activation);
  return {
    gated: fields.optionalBoolean('is_gated_act') ?? implied[1] !== undefined,
    hiddenAct: parseActivation(fields, 'dense_act_fn', fallback),
  };
}
