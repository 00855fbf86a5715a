// The text section of config.json for OPT and T5: stored folders, defaults of sparse files, variants that are refused by name.

import { describe, expect, test } from 'vitest';

import { parseModelConfig } from '../lib/io/config.js';
import { expectError } from './support/expect-error.js';
import { readJson } from './support/fixtures.js';

type Json = Record<string, unknown>;

const parse = (json: Json) => parseModelConfig(json, 'config.json');
const opt = (overrides: Json = {}) => ({ model_type: 'opt', ...overrides });
const t5 = (overrides: Json = {}) => ({ model_type: 't5', ...overrides });
const stored = (name: string): Json => readJson(name, 'config.json');

describe('a stored config.json', () => {
  test('of BLIP-2 over OPT takes what it leaves out from the defaults, and ends with a newline', () => {
    const config = parse(stored('blip2-opt-tiny'));
    expect(config).toMatchObject({ modelType: 'blip-2', numQueryTokens: 8, imageTokenId: 620 });
    expect(config.text).toMatchObject({
      modelType: 'opt',
      hiddenSize: 120,
      hiddenAct: 'relu',
      tieWordEmbeddings: true,
    });
    expect(config.text).toMatchObject({ bosTokenId: 2, eosTokenIds: [202], padTokenId: 1 });
  });

  test('of BLIP-2 and InstructBLIP over Flan-T5 names the erf form of GELU and a separate head', () => {
    for (const [name, hiddenSize, headDim] of [
      ['blip2-flant5-tiny', 80, 24],
      ['instructblip-flant5-tiny', 96, 32],
    ] as const) {
      const { text } = parse(stored(name));
      expect(text).toMatchObject({ modelType: 't5', hiddenSize, headDim, hiddenAct: 'gelu', gated: true });
      expect(text).toMatchObject({ tieWordEmbeddings: false, decoderStartTokenId: 0, eosTokenIds: [1], bosTokenId: 1 });
    }
  });
});

describe('a sparse config.json takes the defaults of transformers', () => {
  test('for OPT, which is the language model of a file that names none', () => {
    const defaults = {
      modelType: 'opt',
      hiddenSize: 768,
      numLayers: 12,
      numHeads: 12,
      intermediateSize: 3072,
      vocabSize: 50272,
      configVocabSize: 50272,
      maxPositionEmbeddings: 2048,
      tieWordEmbeddings: true,
      hiddenAct: 'relu',
      bosTokenId: 2,
      eosTokenIds: [2],
      padTokenId: 1,
    };
    expect(parse(opt()).text).toEqual(defaults);
    expect(parse({ model_type: 'blip-2' }).text).toEqual(defaults);
  });

  test('for T5', () => {
    expect(parse(t5()).text).toEqual({
      modelType: 't5',
      hiddenSize: 512,
      numEncoderLayers: 6,
      numLayers: 6,
      numHeads: 8,
      headDim: 64,
      intermediateSize: 2048,
      vocabSize: 32128,
      configVocabSize: 32128,
      layerNormEps: 1e-6,
      maxPositionEmbeddings: 4096,
      relativeBuckets: 32,
      relativeMaxDistance: 128,
      gated: false,
      hiddenAct: 'relu',
      tieWordEmbeddings: true,
      decoderStartTokenId: 0,
      eosTokenIds: [1],
      padTokenId: 0,
    });
    expect(parse(t5({ num_layers: 3 })).text.numLayers).toBe(3);
    expect(parse(t5({ num_layers: 3, num_decoder_layers: 2 })).text).toMatchObject({
      numEncoderLayers: 3,
      numLayers: 2,
    });
  });

  test.each([
    [{ feed_forward_proj: 'gated-gelu' }, true, 'gelu_tanh'],
    [{ feed_forward_proj: 'gated-gelu', dense_act_fn: 'gelu' }, true, 'gelu'],
    [{ feed_forward_proj: 'gelu' }, false, 'gelu'],
    [{ feed_forward_proj: 'gated-silu' }, true, 'silu'],
    [{ feed_forward_proj: 'relu', is_gated_act: true, dense_act_fn: 'gelu_new' }, true, 'gelu_tanh'],
  ])('of a T5 feed-forward %j the activation said outright wins', (json, gated, hiddenAct) => {
    expect(parse(t5(json)).text).toMatchObject({ gated, hiddenAct });
  });
});

describe('wrong values', () => {
  test.each([
    [t5({ relative_attention_max_distance: 16 }), /relative_attention_max_distance must exceed half of/],
    [t5({ d_kv: 0 }), /d_kv must be a whole number/],
  ])('%j is a FORMAT error that names the key', (json, message) => {
    expectError(() => parse(json), 'FORMAT', message);
  });

  test.each([
    [t5({ feed_forward_proj: 'gated-swish' }), /feed_forward_proj = 'gated-swish'/],
    [t5({ dense_act_fn: 'quick_gelu' }), /dense_act_fn = 'quick_gelu'/],
    [opt({ do_layer_norm_before: false }), /do_layer_norm_before = false/],
    [opt({ _remove_final_layer_norm: true }), /_remove_final_layer_norm = true/],
    [opt({ enable_bias: false }), /enable_bias = false/],
    [opt({ word_embed_proj_dim: 512 }), /word_embed_proj_dim = 512.*only hidden_size, 768/],
  ])('%j is known but UNSUPPORTED', (json, message) => {
    expectError(() => parse(json), 'UNSUPPORTED', message);
  });
});
