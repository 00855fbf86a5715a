// The OPT part of config.json (a bare checkpoint, or text_config of a BLIP-2 one), defaults of transformers' OPTConfig. The
// published BLIP-2 files name little more than the sizes.

import type { JsonFields } from './json-fields.js';
import {
  BOUNDS,
  parseActivation,
  parseSpecialIds,
  requireMultiple,
  type Activation,
  type SpecialIds,
} from './model-fields.js';

/** An OPT decoder. `vocabSize` is the number of embedding rows once the tensors are known, `configVocabSize` what the file says. */
export interface OptConfig extends SpecialIds {
  modelType: 'opt';
  hiddenSize: number;
  numLayers: number;
  numHeads: number;
  intermediateSize: number;
  vocabSize: number;
  configVocabSize: number;
  maxPositionEmbeddings: number;
  tieWordEmbeddings: boolean;
  hiddenAct: Activation;
}

/** Reads the fields of an OptConfig. Throws FORMAT and UNSUPPORTED naming the key path. */
export function parseOptConfig(fields: JsonFields): OptConfig {
  const hiddenSize = fields.integer('hidden_size', { ...BOUNDS.width, default: 768 });
  const numHeads = fields.integer('num_attention_heads', { ...BOUNDS.heads, default: 12 });
  const vocabSize = fields.integer('vocab_size', { ...BOUNDS.vocab, default: 50272 });
  requireMultiple(fields, 'hidden_size', hiddenSize, 'num_attention_heads', numHeads);
  refuseVariants(fields, hiddenSize);
  return {
    modelType: 'opt',
    hiddenSize,
    numLayers: fields.integer('num_hidden_layers', { ...BOUNDS.layers, default: 12 }),
    numHeads,
    intermediateSize: fields.integer('ffn_dim', { ...BOUNDS.width, default: 3072 }),
    vocabSize,
    configVocabSize: vocabSize,
    maxPositionEmbeddings: fields.integer('max_position_embeddings', { ...BOUNDS.positions, default: 2048 }),
    tieWordEmbeddings: fields.optionalBoolean('tie_word_embeddings') ?? true,
    hiddenAct: parseActivation(fields, 'activation_function', 'relu'),
    ...parseSpecialIds(fields, { bosTokenId: 2, eosTokenIds: [2], padTokenId: 1 }),
  };
}

// OPT-350m alone normalises after its layers and projects its embeddings; no checkpoint of the family is built on it.
function refuseVariants(fields: JsonFields, hiddenSize: number): void {
  fields.requireBoolean('do_layer_norm_before', true);
  fields.requireBoolean('_remove_final_layer_norm', false);
  fields.requireBoolean('enable_bias', true);
  fields.requireBoolean('layer_norm_elementwise_affine', true);
  const projected = fields.optionalInteger('word_embed_proj_dim', BOUNDS.width) ?? hiddenSize;
  if (projected !== hiddenSize) {
    throw fields.unsupported('word_embed_proj_dim', projected, `only hidden_size, ${hiddenSize}`);
  }
}
