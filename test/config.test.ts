// config.json, generation_config.json and the image processor's settings: real folders, defaults of sparse files, both
// spellings of rotary parameters, and wrong values, which must be named with their key path.

import { readFileSync } from 'node:fs';

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';

import { isQFormerError } from '../lib/errors.js';
import { parseModelConfig, type LlamaConfig } from '../lib/io/config.js';
import { JsonFields } from '../lib/io/json-fields.js';
import { parseGenerationDefaults, parsePreprocessorConfig } from '../lib/io/side-config.js';
import { expectError } from './support/expect-error.js';
import { propertyRuns } from './support/property-runs.js';

type Json = Record<string, unknown>;

const parse = (json: unknown) => parseModelConfig(json as Json, 'config.json');
const vlm = (overrides: Json = {}) => ({ model_type: 'blip-2', text_config: { model_type: 'llama' }, ...overrides });
const llama = (overrides: Json = {}) => ({ model_type: 'llama', ...overrides });
const parseLlama = (overrides: Json) => parse(llama(overrides)).text as LlamaConfig;
const stored = (name: string): Json =>
  JSON.parse(readFileSync(new URL(`./fixtures/${name}/config.json`, import.meta.url), 'utf8')) as Json;

describe('a stored config.json', () => {
  test('of InstructBLIP gives vision tower, Q-Former with text input and LLaMA', () => {
    const config = parse(stored('instructblip-vicuna-tiny'));
    expect(config).toMatchObject({ modelType: 'instructblip', numQueryTokens: 8, imageTokenId: 1001 });
    expect(config.vision).toEqual({
      hiddenSize: 176,
      numLayers: 3,
      numHeads: 2,
      intermediateSize: 304,
      imageSize: 56,
      patchSize: 14,
      numChannels: 3,
      layerNormEps: 1e-6,
      hiddenAct: 'gelu',
      qkvBias: true,
    });
    expect(config.qformer).toMatchObject({ hiddenSize: 64, numLayers: 4, encoderHiddenSize: 176, useTextInput: true });
    expect(config.text).toMatchObject({
      headDim: 40,
      ropeTheta: 10000,
      bosTokenId: 1,
      eosTokenIds: [2],
      padTokenId: 1000,
    });
  });

  test('of a bare LLaMA with grouped-query attention has no vision part', () => {
    const config = parse(stored('llama-gqa-tiny'));
    expect(config.vision).toBeUndefined();
    expect(config.text).toMatchObject({ numHeads: 8, numKvHeads: 2, headDim: 16, ropeTheta: 500000, rmsNormEps: 1e-5 });
    expect('ropeScaling' in config.text).toBe(false);
  });
});

describe('a sparse config.json takes the defaults of transformers', () => {
  test('for BLIP-2', () => {
    const config = parse(vlm());
    expect(config.vision).toMatchObject({ hiddenSize: 1408, numLayers: 39, numHeads: 16, intermediateSize: 6144 });
    expect(config.vision).toMatchObject({ imageSize: 224, patchSize: 14, layerNormEps: 1e-6, qkvBias: true });
    expect(config.qformer).toMatchObject({ hiddenSize: 768, numLayers: 12, numHeads: 12, intermediateSize: 3072 });
    expect(config.qformer).toMatchObject({ crossAttentionFrequency: 2, layerNormEps: 1e-12, vocabSize: 30522 });
    expect(config.qformer).toMatchObject({ encoderHiddenSize: 1408, useTextInput: false, maxPositionEmbeddings: 512 });
    expect(config).toMatchObject({ numQueryTokens: 32 });
    expect('imageTokenId' in config).toBe(false);
  });

  test('for LLaMA', () => {
    expect(parse(llama()).text).toEqual({
      modelType: 'llama',
      hiddenSize: 4096,
      numLayers: 32,
      numHeads: 32,
      numKvHeads: 32,
      headDim: 128,
      intermediateSize: 11008,
      vocabSize: 32000,
      configVocabSize: 32000,
      rmsNormEps: 1e-6,
      maxPositionEmbeddings: 2048,
      ropeTheta: 10000,
      tieWordEmbeddings: false,
      hiddenAct: 'silu',
      bosTokenId: 1,
      eosTokenIds: [2],
    });
  });

  test('and null counts as absent', () => {
    expect(parseLlama({ num_key_value_heads: null, head_dim: null, rope_scaling: null }).numKvHeads).toBe(32);
  });
});

describe('quirks of published files', () => {
  test('the Q-Former reads the vision width whatever its own entry says', () => {
    expect(parse(vlm({ qformer_config: { encoder_hidden_size: 99 } })).qformer!.encoderHiddenSize).toBe(1408);
  });
  test('a vision eps of 1e-5 is kept as written', () => {
    expect(parse(vlm({ vision_config: { layer_norm_eps: 1e-5 } })).vision!.layerNormEps).toBe(1e-5);
  });
  test('InstructBLIP-Vicuna stops at </s> = 2 although its config says 1', () => {
    const text_config = { model_type: 'llama', bos_token_id: 0, eos_token_id: 1, pad_token_id: 32000 };
    expect(parse({ model_type: 'instructblip', text_config }).text.eosTokenIds).toEqual([2, 1, 0]);
    expect(parse(vlm({ text_config })).text.eosTokenIds).toEqual([1]);
  });
  test('the image token is spelled image_token_index or image_token_id', () => {
    expect(parse(vlm({ image_token_index: 7 })).imageTokenId).toBe(7);
    expect(parse(vlm({ image_token_id: 8 })).imageTokenId).toBe(8);
    expect(parse(vlm({ image_token_index: null })).imageTokenId).toBeUndefined();
  });
  test('use_decoder_only_language_model is accepted as a boolean only', () => {
    expect(parse(vlm({ use_decoder_only_language_model: true })).text.modelType).toBe('llama');
    expectError(
      () => parse(vlm({ use_decoder_only_language_model: 'yes' })),
      'FORMAT',
      'use_decoder_only_language_model',
    );
  });
  test.each([
    [5, [5]],
    [
      [5, 6, 5],
      [5, 6],
    ],
    [-1, []],
    [null, []],
    [[], []],
  ])('eos_token_id %j gives the stops %j', (eos_token_id, expected) => {
    expect(parse(llama({ eos_token_id })).text.eosTokenIds).toEqual(expected);
  });
  test('a pad id of -1 means none, and a null bos has no default', () => {
    const { text } = parse(llama({ pad_token_id: -1, bos_token_id: null }));
    expect([text.padTokenId, text.bosTokenId]).toEqual([undefined, undefined]);
  });
});

describe('rotary parameters', () => {
  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
  test.each([
    ['rope_scaling with type', { rope_theta: 5e5, rope_scaling: { type: 'linear', factor: 2 } }],
    ['rope_scaling with rope_type', { rope_theta: 5e5, rope_scaling: { rope_type: 'linear', factor: 2 } }],
    ['rope_parameters', { rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 5e5 } }],
    [
      'both, where rope_parameters win',
      {
        rope_theta: 1e4,
        rope_scaling: { type: 'linear', factor: 9 },
        rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 5e5 },
      },
    ],
    ['rope_parameters without theta', { rope_theta: 5e5, rope_parameters: { rope_type: 'linear', factor: 2 } }],
  ])('are read from %s', (_name, json) => {
    expect(parse(llama(json)).text).toMatchObject({ ropeTheta: 5e5, ropeScaling: { type: 'linear', factor: 2 } });
  });

  test('of type default scale nothing', () => {
    expect(parseLlama({ rope_parameters: { rope_type: 'default', rope_theta: 7 } }).ropeScaling).toBeUndefined();
  });

  test('of type llama3 carry their four numbers', () => {
    expect(parseLlama({ rope_scaling: { rope_type: 'llama3', ...llama3 } }).ropeScaling).toEqual({
      type: 'llama3',
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 8192,
    });
  });

  test.each([
    [{ rope_scaling: { type: 'yarn', factor: 4 } }, 'UNSUPPORTED', /rope_scaling.type = 'yarn'/],
    [{ rope_parameters: { partial_rotary_factor: 0.5 } }, 'UNSUPPORTED', /rope_parameters.partial_rotary_factor/],
    [{ rope_scaling: { type: 'linear' } }, 'FORMAT', /rope_scaling.factor is missing/],
    [{ rope_scaling: { type: 'linear', factor: 0 } }, 'FORMAT', /rope_scaling.factor must be a number from 1/],
    [
      { rope_scaling: { rope_type: 'llama3', ...llama3, high_freq_factor: 1 } },
      'FORMAT',
      /must exceed low_freq_factor/,
    ],
    [{ rope_scaling: 2 }, 'FORMAT', /rope_scaling must be an object, got 2/],
    [{ rope_theta: 'big' }, 'FORMAT', /rope_theta must be a number.*'big'/],
  ] as const)('%j is refused with %s', (json, code, message) => {
    expectError(() => parse(llama(json)), code, message);
  });
});

describe('a wrong config.json', () => {
  test.each([
    [{}, /model_type is missing/],
    [{ model_type: 3 }, /model_type must be a string, got 3/],
    [vlm({ vision_config: [] }), /vision_config must be an object, got an array of 0/],
    [vlm({ vision_config: { hidden_size: '1408' } }), /vision_config.hidden_size must be a whole number.*'1408'/],
    [vlm({ vision_config: { num_hidden_layers: 1e9 } }), /vision_config.num_hidden_layers.*to 1024, got 1000000000/],
    [vlm({ vision_config: { num_hidden_layers: 0 } }), /num_hidden_layers must be a whole number from 1/],
    [vlm({ vision_config: { num_hidden_layers: -3 } }), /num_hidden_layers.*got -3/],
    [
      vlm({ vision_config: { num_attention_heads: 3 } }),
      /vision_config.hidden_size must be a multiple of num_attention_heads/,
    ],
    [
      vlm({ vision_config: { patch_size: 225 } }),
      /vision_config.patch_size must not exceed image_size \(224\), got 225/,
    ],
    [vlm({ vision_config: { image_size: [224, 224] } }), /vision_config.image_size.*an array of 2/],
    [vlm({ vision_config: { layer_norm_eps: 0 } }), /layer_norm_eps must be a number/],
    [vlm({ vision_config: { qkv_bias: 1 } }), /vision_config.qkv_bias must be true or false, got 1/],
    [vlm({ qformer_config: { hidden_act: 5 } }), /qformer_config.hidden_act must be a string/],
    [vlm({ qformer_config: { intermediate_size: 2.5 } }), /qformer_config.intermediate_size.*got 2.5/],
    [vlm({ qformer_config: { use_qformer_text_input: 'no' } }), /use_qformer_text_input must be true or false/],
    [vlm({ num_query_tokens: 0 }), /num_query_tokens must be a whole number from 1/],
    [vlm({ image_token_index: -1 }), /image_token_index.*got -1/],
    [vlm({ architectures: 'Blip2' }), /architectures must be a list of strings/],
    [vlm({ architectures: ['Blip2', 1] }), /architectures\[1\] must be one of a list of strings, got 1/],
    [llama({ num_key_value_heads: 5 }), /num_attention_heads must be a multiple of num_key_value_heads \(5\)/],
    [llama({ num_attention_heads: 4096, num_key_value_heads: 1 }), /head_dim must be even.*got 1/],
    [llama({ hidden_size: 4097 }), /hidden_size must be a multiple/],
    [llama({ head_dim: 7 }), /head_dim must be even/],
    [llama({ vocab_size: 2 ** 40 }), /vocab_size/],
    [llama({ eos_token_id: 'two' }), /eos_token_id must be a token id or a list of them, got 'two'/],
    [llama({ eos_token_id: [2, 2.5] }), /eos_token_id\[1\].*got 2.5/],
    [llama({ tie_word_embeddings: 'false' }), /tie_word_embeddings must be true or false/],
  ])('%j is a FORMAT error that names the key and the value', (json, message) => {
    expectError(() => parse(json), 'FORMAT', message);
  });

  test.each([
    [{ model_type: 'llava' }, /model_type = 'llava'.*known: instructblip, blip-2, llama, opt, t5/],
    [{ model_type: '__proto__' }, /model_type = '__proto__'/],
    [vlm({ text_config: { model_type: 'bloom' } }), /text_config.model_type = 'bloom'.*known: llama, opt, t5/],
    [vlm({ architectures: ['Blip2ForImageTextRetrieval'] }), /Blip2ForImageTextRetrieval/],
    [vlm({ vision_config: { hidden_act: 'quick_gelu' } }), /vision_config.hidden_act = 'quick_gelu'/],
    [vlm({ vision_config: { num_channels: 1 } }), /num_channels = 1/],
    [vlm({ qformer_config: { position_embedding_type: 'relative_key' } }), /position_embedding_type/],
    [llama({ attention_bias: true }), /attention_bias = true/],
    [llama({ mlp_bias: true }), /mlp_bias = true/],
    [llama({ quantization_config: { load_in_8bit: true } }), /quantization_config/],
  ])('%j is known but UNSUPPORTED', (json, message) => {
    expectError(() => parse(json), 'UNSUPPORTED', message);
  });

  test('cannot reach Object.prototype through its keys', () => {
    const json = JSON.parse(
      '{"model_type":"llama","__proto__":{"hidden_size":8},"constructor":{"hidden_size":8}}',
    ) as Json;
    expect(parse(json).text.hiddenSize).toBe(4096);
  });

  test('of any other kind gives a coded error and never anything else', () => {
    const value = fc.oneof(
      fc.jsonValue({ maxDepth: 2 }),
      fc.integer(),
      fc.constantFrom('gelu', 'llama', 1e999, -0, 2 ** 53),
    );
    const keys = [
      'hidden_size',
      'num_hidden_layers',
      'num_attention_heads',
      'head_dim',
      'rope_scaling',
      'rope_parameters',
    ];
    const section = fc.dictionary(
      fc.constantFrom(...keys, 'eos_token_id', 'hidden_act', 'patch_size', 'model_type'),
      value,
    );
    const config = fc.record(
      {
        model_type: fc.constantFrom('llama', 'blip-2', 'instructblip'),
        text_config: fc.oneof(section, value),
        vision_config: fc.oneof(section, value),
        qformer_config: fc.oneof(section, value),
        num_query_tokens: value,
        architectures: value,
      },
      { requiredKeys: ['model_type'] },
    );
    fc.assert(
      fc.property(config, (json) => {
        try {
          const parsed = parse(json);
          if (parsed.text.modelType === 'llama') expect(parsed.text.headDim % 2).toBe(0);
          expect(parsed.text.numLayers).toBeLessThanOrEqual(1024);
        } catch (error) {
          if (!isQFormerError(error)) throw error;
          expect(['FORMAT', 'UNSUPPORTED']).toContain(error.code);
        }
      }),
      propertyRuns(2000),
    );
  });
});

describe('generation_config.json', () => {
  const defaults = (json: Json) => parseGenerationDefaults(new JsonFields('generation_config.json', json));

  test('gives what it names and nothing else', () => {
    expect(defaults({})).toEqual({ eosTokenIds: [] });
    expect(
      defaults({ max_new_tokens: 48, do_sample: false, eos_token_id: [2, 5], pad_token_id: 3, top_p: 0.9 }),
    ).toEqual({
      maxNewTokens: 48,
      doSample: false,
      eosTokenIds: [2, 5],
      padTokenId: 3,
      topP: 0.9,
    });
  });

  test.each([
    [{ max_new_tokens: '20' }, /max_new_tokens.*'20'/],
    [{ max_new_tokens: -1 }, /max_new_tokens/],
    [{ do_sample: 1 }, /do_sample must be true or false/],
    [{ temperature: -1 }, /temperature/],
    [{ top_p: 1.5 }, /top_p must be a number from 0 to 1/],
    [{ repetition_penalty: 0 }, /repetition_penalty/],
  ])('with %j is a FORMAT error', (json, message) => {
    expectError(() => defaults(json), 'FORMAT', message);
  });
});

describe('the image processor settings', () => {
  const settings = (json: Json) => parsePreprocessorConfig(new JsonFields('preprocessor_config.json', json), 224);

  test('default to CLIP statistics and the vision size', () => {
    expect(settings({})).toEqual({
      imageSize: 224,
      rescaleFactor: 1 / 255,
      mean: [0.48145466, 0.4578275, 0.40821073],
      std: [0.26862954, 0.26130258, 0.27577711],
    });
  });
  test('give the size as {height, width} or as a number', () => {
    expect(settings({ size: { height: 364, width: 364 } }).imageSize).toBe(364);
    expect(settings({ size: 364 }).imageSize).toBe(364);
  });
  test('may switch rescaling and normalisation off', () => {
    expect(settings({ do_rescale: false }).rescaleFactor).toBe(1);
    expect(settings({ do_normalize: false })).toMatchObject({ mean: [0, 0, 0], std: [1, 1, 1] });
  });
  test.each([
    [{ size: { shortest_edge: 224 } }, 'FORMAT', /size.height is missing/],
    [{ size: { height: 0, width: 0 } }, 'FORMAT', /size.height/],
    [{ size: 'big' }, 'FORMAT', /size must be an object/],
    [{ image_mean: [0.5, 0.5] }, 'FORMAT', /image_mean must have three numbers/],
    [{ image_std: [0.5, 0.5, 0] }, 'FORMAT', /image_std\[2\]/],
    [{ image_std: ['a', 1, 1] }, 'FORMAT', /image_std\[0\].*'a'/],
    [{ rescale_factor: null, do_rescale: 'x' }, 'FORMAT', /do_rescale/],
    [{ size: { height: 224, width: 336 } }, 'UNSUPPORTED', /square/],
    [{ resample: 2 }, 'UNSUPPORTED', /resample = 2/],
    [{ do_resize: false }, 'UNSUPPORTED', /do_resize = false/],
    [{ do_center_crop: true }, 'UNSUPPORTED', /do_center_crop/],
  ] as const)('%j is refused with %s', (json, code, message) => {
    expectError(() => settings(json), code, message);
  });
});
