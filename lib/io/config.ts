// config.json → ModelConfig: validated, with the defaults of transformers where an entry is absent (published configs are sparse).
// One class of quirk is handled here so that nobody else has to know it: rotary parameters spelled as in transformers 4 and 5,
// and the token ids of InstructBLIP-Vicuna. A vision layer_norm_eps of 1e-5 (early revisions; 1e-6 was meant) is kept as
// written, because that is what the reference computes with such a file.
// Every size is bounded, so that a lying file cannot ask for a billion layers.

import { dirname } from 'node:path';

import { QFormerError } from '../errors.js';
import { readJsonObject, type JsonObject } from './files.js';
import { JsonFields } from './json-fields.js';
import { parseLlamaConfig, type LlamaConfig } from './llama-config.js';
import { BOUNDS, parseActivation, requireMultiple, type Activation } from './model-fields.js';
import { parseOptConfig, type OptConfig } from './opt-config.js';
import { parseT5Config, type T5Config } from './t5-config.js';

export type { LlamaConfig, RopeScaling } from './llama-config.js';
export type { Activation } from './model-fields.js';
export type { OptConfig } from './opt-config.js';
export type { GenerationDefaults, PreprocessorConfig } from './side-config.js';
export type { T5Config } from './t5-config.js';

/** EVA ViT: sizes in channels and pixels. */
export interface VisionConfig {
  hiddenSize: number;
  numLayers: number;
  numHeads: number;
  intermediateSize: number;
  imageSize: number;
  patchSize: number;
  numChannels: number;
  layerNormEps: number;
  hiddenAct: Activation;
  qkvBias: boolean;
}

/** Q-Former; cross-attention sits in every layer whose index is a multiple of `crossAttentionFrequency`. */
export interface QFormerConfig {
  hiddenSize: number;
  numLayers: number;
  numHeads: number;
  intermediateSize: number;
  crossAttentionFrequency: number;
  encoderHiddenSize: number;
  layerNormEps: number;
  maxPositionEmbeddings: number;
  vocabSize: number;
  hiddenAct: Activation;
  useTextInput: boolean;
}

/** The language model of a checkpoint. */
export type TextConfig = LlamaConfig | OptConfig | T5Config;

/** A whole model; `vision` and `qformer` are absent for a text-only one. */
export interface ModelConfig {
  modelType: 'instructblip' | 'blip-2' | TextConfig['modelType'];
  vision?: VisionConfig;
  qformer?: QFormerConfig;
  text: TextConfig;
  numQueryTokens: number;
  /** Absent in the legacy layout, where image features are put in front of the text. */
  imageTokenId?: number;
  /** The names of a chat's two sides, where the model was trained with some (Ziya-Visual). */
  chatNames?: ChatNames;
}

/** Who speaks in a chat prompt, as the tokenizer spells it, and the text in front of the first turn. */
export interface ChatNames {
  human: string;
  assistant: string;
  prefix: string;
}

/**
 * The configuration in `file`; `text` is that of a language model kept in a folder of its own, and stands for what the file
 * says about one. Throws IO, FORMAT (naming the key path and the value) and UNSUPPORTED.
 */
export function readModelConfig(file: string, text?: TextConfig): ModelConfig {
  return parseModelConfig(readJsonObject(file), file, text);
}

/** The configuration held by a parsed config.json; `file` is used in messages. Throws FORMAT and UNSUPPORTED. */
export function parseModelConfig(json: JsonObject, file: string, text?: TextConfig): ModelConfig {
  const fields = new JsonFields(file, json);
  const modelType = fields.optionalString('model_type');
  if (fields.raw('quantization_config') !== undefined) {
    throw fields.unsupported(
      'quantization_config',
      fields.raw('quantization_config'),
      'only f32, f16 and bf16 weights',
    );
  }
  switch (modelType) {
    case 'instructblip':
    case 'blip-2':
      return parseComposite(fields, modelType, text);
    case 'llama':
    case 'opt':
    case 't5':
      return { modelType, text: textParsers[modelType](fields), numQueryTokens: 0 };
    case undefined:
      throw new QFormerError('FORMAT', `${file}: model_type is missing`, { file, key: 'model_type' });
    default:
      throw fields.unsupported(
        'model_type',
        modelType,
        `known: instructblip, blip-2, ${Object.keys(textParsers).join(', ')}`,
      );
  }
}

function parseComposite(
  fields: JsonFields,
  modelType: 'instructblip' | 'blip-2',
  separateText: TextConfig | undefined,
): ModelConfig {
  const architectures = readArchitectures(fields);
  refuseRetrieval(fields, architectures);
  // ZiyaBlip2ForCausalLM takes its language model from another folder; its text_config says nothing reliable.
  const isZiya = architectures.some((name) => name.startsWith('Ziya'));
  if (isZiya && separateText === undefined) throw needsLanguageModel(dirname(fields.file));
  fields.optionalBoolean('use_decoder_only_language_model');
  const vision = parseVision(section(fields, 'vision_config'));
  const imageTokenKey = fields.raw('image_token_index') === undefined ? 'image_token_id' : 'image_token_index';
  const imageTokenId = fields.optionalInteger(imageTokenKey, { ...BOUNDS.tokenId, min: 0 });
  return {
    modelType,
    vision,
    qformer: parseQFormer(section(fields, 'qformer_config'), vision.hiddenSize, modelType === 'instructblip'),
    text: separateText ?? parseText(fields, modelType),
    numQueryTokens: fields.integer('num_query_tokens', { min: 1, max: 4096, default: 32 }),
    ...(imageTokenId === undefined ? {} : { imageTokenId }),
    ...parseChatNames(fields, separateText !== undefined),
  };
}

/** The class names a config.json lists; empty where it lists none. Throws FORMAT. */
export function readArchitectures(fields: JsonFields): string[] {
  const isString = (value: unknown): value is string => typeof value === 'string';
  return fields.optionalList('architectures', 'strings', isString) ?? [];
}

/** The error of a visual part that is opened alone. */
export function needsLanguageModel(dir: string): QFormerError {
  const message =
    `${dir}: holds the visual part of a model; give the folder of its language model too: ` +
    `loadModel(dir, { languageModel: '…' }), --language-model DIR on the command line`;
  return new QFormerError('INVALID_ARGUMENT', message, { option: 'languageModel', dir });
}

// Ziya-Visual is the one model of the family that comes as a visual part and a language model, so its names are the defaults.
function parseChatNames(fields: JsonFields, separate: boolean): { chatNames?: ChatNames } {
  const human = fields.optionalString('human_name');
  if (human === undefined && !separate) return {};
  const assistant = fields.optionalString('assistant_name') ?? '<bot>';
  const prefix = fields.optionalString('prompt_prefix') ?? '';
  return { chatNames: { human: human ?? '<human>', assistant, prefix } };
}

function refuseRetrieval(fields: JsonFields, architectures: readonly string[]): void {
  const retrieval = architectures.find((name) => name.endsWith('ForImageTextRetrieval'));
  if (retrieval === undefined) return;
  throw fields.unsupported('architectures', retrieval, 'image-text retrieval generates no text');
}

/** The object under `key`, empty where there is none. */
export function section(fields: JsonFields, key: string): JsonFields {
  return fields.optionalObject(key) ?? new JsonFields(fields.file, {}, `${key}.`);
}

/** The vision tower's section. */
export function parseVision(fields: JsonFields): VisionConfig {
  const config: VisionConfig = {
    hiddenSize: fields.integer('hidden_size', { ...BOUNDS.width, default: 1408 }),
    numLayers: fields.integer('num_hidden_layers', { ...BOUNDS.layers, default: 39 }),
    numHeads: fields.integer('num_attention_heads', { ...BOUNDS.heads, default: 16 }),
    intermediateSize: fields.integer('intermediate_size', { ...BOUNDS.width, default: 6144 }),
    imageSize: fields.integer('image_size', { min: 1, max: 8192, default: 224 }),
    patchSize: fields.integer('patch_size', { min: 1, max: 8192, default: 14 }),
    numChannels: fields.integer('num_channels', { min: 1, max: 4, default: 3 }),
    layerNormEps: fields.number('layer_norm_eps', { ...BOUNDS.eps, default: 1e-6 }),
    hiddenAct: parseActivation(fields, 'hidden_act', 'gelu'),
    qkvBias: fields.optionalBoolean('qkv_bias') ?? true,
  };
  requireMultiple(fields, 'hidden_size', config.hiddenSize, 'num_attention_heads', config.numHeads);
  if (config.numChannels !== 3) throw fields.unsupported('num_channels', config.numChannels, 'images are RGB');
  if (config.patchSize > config.imageSize) {
    throw fields.fault('patch_size', `must not exceed image_size (${config.imageSize})`, config.patchSize);
  }
  return config;
}

/** The Q-Former's section; `instructed`: it reads text whatever the file says. */
export function parseQFormer(fields: JsonFields, visionHiddenSize: number, instructed: boolean): QFormerConfig {
  const config: QFormerConfig = {
    hiddenSize: fields.integer('hidden_size', { ...BOUNDS.width, default: 768 }),
    numLayers: fields.integer('num_hidden_layers', { ...BOUNDS.layers, default: 12 }),
    numHeads: fields.integer('num_attention_heads', { ...BOUNDS.heads, default: 12 }),
    intermediateSize: fields.integer('intermediate_size', { ...BOUNDS.width, default: 3072 }),
    crossAttentionFrequency: fields.integer('cross_attention_frequency', { ...BOUNDS.layers, default: 2 }),
    // the reference overwrites whatever the file says
    encoderHiddenSize: visionHiddenSize,
    layerNormEps: fields.number('layer_norm_eps', { ...BOUNDS.eps, default: 1e-12 }),
    maxPositionEmbeddings: fields.integer('max_position_embeddings', { ...BOUNDS.positions, default: 512 }),
    vocabSize: fields.integer('vocab_size', { ...BOUNDS.vocab, default: 30522 }),
    hiddenAct: parseActivation(fields, 'hidden_act', 'gelu'),
    useTextInput: instructed || (fields.optionalBoolean('use_qformer_text_input') ?? false),
  };
  requireMultiple(fields, 'hidden_size', config.hiddenSize, 'num_attention_heads', config.numHeads);
  const positions = fields.optionalString('position_embedding_type') ?? 'absolute';
  if (positions !== 'absolute') throw fields.unsupported('position_embedding_type', positions, 'only absolute');
  return config;
}

const textParsers: Record<TextConfig['modelType'], (fields: JsonFields) => TextConfig> = {
  llama: parseLlamaConfig,
  opt: parseOptConfig,
  t5: parseT5Config,
};

function parseText(fields: JsonFields, modelType: string): TextConfig {
  const text = section(fields, 'text_config');
  // without a type transformers assumes OPT
  const textType = text.optionalString('model_type') ?? 'opt';
  if (!isTextType(textType)) {
    const known = Object.keys(textParsers).join(', ');
    throw text.unsupported(
      'model_type',
      textType,
      `the language model of this ${modelType} checkpoint; known: ${known}`,
    );
  }
  const config = textParsers[textType](text);
  return modelType === 'instructblip' && textType === 'llama' ? withVicunaStops(config) : config;
}

function isTextType(name: string): name is TextConfig['modelType'] {
  return Object.hasOwn(textParsers, name);
}

// InstructBLIP-Vicuna's config names bos 0 and eos 1, but the model was trained with `</s>` = 2 as terminator, and finished
// rows were filled with 0: all three end a text.
function withVicunaStops(config: TextConfig): TextConfig {
  const published = config.bosTokenId === 0 && config.eosTokenIds.length === 1 && config.eosTokenIds[0] === 1;
  return published ? { ...config, eosTokenIds: [2, 1, 0] } : config;
}
