// A checkpoint folder as downloaded from the hub: config.json, optional generation and processor settings, and weights. Opening
// reads JSON and the headers of weight files only. Ziya-Visual comes in two folders, the visual part and a language model; here
// they become one checkpoint, so that nothing above knows.

import { join } from 'node:path';

import { QFormerError, describe } from '../errors.js';
import { needsLanguageModel, readModelConfig, type ModelConfig, type TextConfig } from './config.js';
import { fileExists, readJsonObject, statOptional } from './files.js';
import { JsonFields } from './json-fields.js';
import type { TensorEntry } from './safetensors.js';
import {
  checkQueryTokens,
  defaultPreprocessor,
  parseGenerationDefaults,
  parsePreprocessorConfig,
  preferIds,
  type GenerationDefaults,
  type PreprocessorConfig,
} from './side-config.js';
import { readWeightFiles } from './weight-files.js';

/** What every checkpoint folder holds. `bytes` is the sum over `tensors`. */
export interface CheckpointFiles {
  dir: string;
  preprocessor?: PreprocessorConfig;
  tensors: Map<string, TensorEntry>;
  files: string[];
  bytes: number;
  /** Folder with the tokenizer of the language model, or where there is none of the Q-Former. */
  tokenizerDir: string;
}

/** Everything a folder says about a model except the tensors' bytes. */
export interface Checkpoint extends CheckpointFiles {
  config: ModelConfig;
  generation: GenerationDefaults;
  /** Folder with the tokenizer of the Q-Former's instruction text; absent where the Q-Former reads none. */
  qformerTokenizerDir?: string;
}

/** In front of the names of the language model's tensors in a vision-language checkpoint. */
const LANGUAGE_PREFIX = 'language_model.';

/** What the image processor's settings are checked against. */
type VisionPart = Pick<ModelConfig, 'vision' | 'numQueryTokens'>;

/** Where each language model keeps the embeddings of its tokens; behind the name that its class reads, others that files have. */
const TOKEN_TABLES: Record<TextConfig['modelType'], readonly [string, ...string[]]> = {
  llama: ['model.embed_tokens.weight'],
  opt: ['model.decoder.embed_tokens.weight'],
  t5: ['shared.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'],
};

/** Options of `openCheckpoint`. */
export interface OpenOptions {
  /** Folder of the language model, where `dir` holds only the visual part (Ziya-Visual). */
  languageModel?: string | undefined;
}

/**
 * Opens the folder `dir`. Throws INVALID_ARGUMENT, IO (missing folder, config or shards), FORMAT (naming file and key or tensor),
 * SHAPE (a language model that the projection does not fit) and UNSUPPORTED (a model, setting or weight format that is known but
 * not read).
 */
export function openCheckpoint(dir: string, { languageModel }: OpenOptions = {}): Checkpoint {
  const language = languageModel === undefined ? undefined : openLanguageModel(languageModel);
  const config = readModelConfig(configFile(dir), language?.config.text);
  const generation = language?.generation ?? readGeneration(dir, config);
  const own = readCheckpointFiles(dir, config);
  checkParts(own, config, language);
  const files = language === undefined ? own : joinFiles(own, language);
  nameTokenTable(config, files.tensors);
  return {
    ...files,
    config: withTableSizes(config, files.tensors),
    generation,
    ...(config.qformer?.useTextInput ? { qformerTokenizerDir: join(dir, 'qformer_tokenizer') } : {}),
  };
}

/** The weights and the image processor's settings of a folder whose configuration has been read. Throws as `openCheckpoint`. */
export function readCheckpointFiles(dir: string, config: VisionPart): CheckpointFiles {
  const preprocessor = readPreprocessor(dir, config);
  const tensors = readWeightFiles(dir);
  const files = [...new Set([...tensors.values()].map((entry) => entry.file))];
  let bytes = 0;
  for (const entry of tensors.values()) bytes += entry.bytes;
  return { dir, ...(preprocessor === undefined ? {} : { preprocessor }), tensors, files, bytes, tokenizerDir: dir };
}

/** Path of the folder's config.json. Throws INVALID_ARGUMENT and IO where `dir` is no checkpoint folder. */
export function configFile(dir: string): string {
  requireFolder(dir);
  return requireConfig(dir);
}

function requireFolder(dir: unknown): asserts dir is string {
  if (typeof dir !== 'string' || dir === '') {
    throw new QFormerError('INVALID_ARGUMENT', `checkpoint folder must be a non-empty string, got ${describe(dir)}`);
  }
  const stats = statOptional(dir);
  if (stats === undefined) throw new QFormerError('IO', `${dir}: no such folder`, { file: dir });
  if (!stats.isDirectory()) {
    throw new QFormerError('IO', `${dir}: is a file, expected the folder of a checkpoint`, { file: dir });
  }
}

function requireConfig(dir: string): string {
  const file = join(dir, 'config.json');
  if (!fileExists(file)) {
    throw new QFormerError('IO', `${dir}: has no config.json, so it is not a checkpoint folder`, { file });
  }
  return file;
}

function optionalFields(dir: string, name: string): JsonFields | undefined {
  const file = join(dir, name);
  return fileExists(file) ? new JsonFields(file, readJsonObject(file)) : undefined;
}

// The reference generates with text_config's ids for vision-language models, with generation_config.json's for a bare one.
function readGeneration(dir: string, config: ModelConfig): GenerationDefaults {
  const fields = optionalFields(dir, 'generation_config.json');
  const own = preferIds({ eosTokenIds: [] }, config.text);
  if (fields === undefined) return own;
  const stored = parseGenerationDefaults(fields);
  return config.vision === undefined ? { ...stored, ...preferIds(own, stored) } : preferIds(stored, own);
}

function readPreprocessor(dir: string, config: VisionPart): PreprocessorConfig | undefined {
  if (config.vision === undefined) return undefined;
  const processor = optionalFields(dir, 'processor_config.json');
  if (processor !== undefined) checkQueryTokens(processor, config.numQueryTokens);
  const fields = processor?.optionalObject('image_processor') ?? optionalFields(dir, 'preprocessor_config.json');
  const { imageSize } = config.vision;
  return fields === undefined ? defaultPreprocessor(imageSize) : parsePreprocessorConfig(fields, imageSize);
}

function openLanguageModel(dir: string): Checkpoint {
  const language = openCheckpoint(dir);
  if (language.config.vision === undefined) return language;
  const message = `languageModel: ${dir} holds a whole ${language.config.modelType} model, not a language model alone`;
  throw new QFormerError('INVALID_ARGUMENT', message, { option: 'languageModel', dir });
}

/** Throws where the folder's own part and the separate language model do not make one model. */
function checkParts(own: CheckpointFiles, config: ModelConfig, language: Checkpoint | undefined): void {
  const { dir, tensors } = own;
  const has = (prefix: string): boolean => [...tensors.keys()].some((name) => name.startsWith(prefix));
  const isWhole = config.vision === undefined || has(LANGUAGE_PREFIX);
  if (language === undefined) {
    if (!isWhole && has('language_projection.')) throw needsLanguageModel(dir);
    return;
  }
  if (isWhole) {
    const message = `languageModel: ${dir} has a language model of its own`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option: 'languageModel', dir });
  }
  const projected = rows(tensors, 'language_projection.weight');
  const { hiddenSize } = language.config.text;
  if (projected === undefined || projected === hiddenSize) return;
  const message =
    `the language model does not fit: ${dir} projects images to ${projected} channels, ` +
    `${language.dir} has a hidden size of ${hiddenSize}`;
  throw new QFormerError('SHAPE', message, { projected, hiddenSize });
}

/** Both folders as one checkpoint, the language model's tensors under the names they have in a whole one. */
function joinFiles(own: CheckpointFiles, language: Checkpoint): CheckpointFiles {
  const tensors = new Map(own.tensors);
  for (const [name, entry] of language.tensors) {
    const joined = LANGUAGE_PREFIX + name;
    tensors.set(joined, { ...entry, name: joined });
  }
  return {
    ...own,
    tensors,
    files: [...own.files, ...language.files],
    bytes: own.bytes + language.bytes,
    tokenizerDir: language.tokenizerDir,
  };
}

function tokenTableNames(config: ModelConfig): readonly [string, ...string[]] {
  const prefix = config.vision === undefined ? '' : LANGUAGE_PREFIX;
  const [name, ...aliases] = TOKEN_TABLES[config.text.modelType];
  return [prefix + name, ...aliases.map((alias) => prefix + alias)];
}

// A table that modules share is stored once, under whichever of its names; it is known by the first.
function nameTokenTable(config: ModelConfig, tensors: Map<string, TensorEntry>): void {
  const [name, ...aliases] = tokenTableNames(config);
  const stored = aliases.map((alias) => tensors.get(alias)).find((entry) => entry !== undefined);
  if (!tensors.has(name) && stored !== undefined) tensors.set(name, { ...stored, name });
}

// Published embeddings were padded to a multiple of 64 rows without a note in config.json: the tensors are right.
function withTableSizes(config: ModelConfig, tensors: Map<string, TensorEntry>): ModelConfig {
  const vocabSize = rows(tensors, tokenTableNames(config)[0]) ?? config.text.vocabSize;
  const result: ModelConfig = { ...config, text: { ...config.text, vocabSize } };
  if (config.qformer !== undefined) {
    const words = rows(tensors, 'qformer.embeddings.word_embeddings.weight') ?? config.qformer.vocabSize;
    result.qformer = { ...config.qformer, vocabSize: words };
  }
  return result;
}

function rows(tensors: Map<string, TensorEntry>, name: string): number | undefined {
  const count = tensors.get(name)?.shape[0];
  return count !== undefined && count > 0 ? count : undefined;
}
