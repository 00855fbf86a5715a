// A checkpoint folder as downloaded from the hub: config.json, optional generation and processor settings, and weights as one
// model.safetensors or as shards listed by model.safetensors.index.json. Opening reads JSON and safetensors headers only.
// The index is untrusted: it may name plain files of this folder and nothing else.

import { readdirSync } from 'node:fs';
import { join } from 'node:path';

import { QFormerError, describe } from '../errors.js';
import { readModelConfig, type ModelConfig } from './config.js';
import { fileExists, ioError, readJsonObject, statOptional } from './files.js';
import { JsonFields } from './json-fields.js';
import { readSafetensorsHeader, type TensorEntry } from './safetensors.js';
import {
  checkQueryTokens,
  defaultPreprocessor,
  parseGenerationDefaults,
  parsePreprocessorConfig,
  preferIds,
  type GenerationDefaults,
  type PreprocessorConfig,
} from './side-config.js';

/** What every checkpoint folder holds. `bytes` is the sum over `tensors`. */
export interface CheckpointFiles {
  dir: string;
  preprocessor?: PreprocessorConfig;
  tensors: Map<string, TensorEntry>;
  files: string[];
  bytes: number;
  /** Folder with the tokenizer.json of the language model, or where there is none of the Q-Former. */
  tokenizerDir: string;
}

/** Everything a folder says about a model except the tensors' bytes. */
export interface Checkpoint extends CheckpointFiles {
  config: ModelConfig;
  generation: GenerationDefaults;
  /** Folder with the tokenizer of the Q-Former's instruction text; absent where the Q-Former reads none. */
  qformerTokenizerDir?: string;
}

/** What the image processor's settings are checked against. */
type VisionPart = Pick<ModelConfig, 'vision' | 'numQueryTokens'>;

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const MAX_LISTED = 8;

/**
 * Opens the folder `dir`. Throws INVALID_ARGUMENT, IO (missing folder, config or shards), FORMAT (naming file and key or tensor)
 * and UNSUPPORTED (a model, setting or weight format that is known but not read).
 */
export function openCheckpoint(dir: string): Checkpoint {
  const config = readModelConfig(configFile(dir));
  const generation = readGeneration(dir, config);
  const files = readCheckpointFiles(dir, config);
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
  const tensors = readTensors(dir);
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

function readTensors(dir: string): Map<string, TensorEntry> {
  const single = join(dir, SINGLE);
  if (fileExists(single)) return readSafetensorsHeader(single);
  const index = join(dir, INDEX);
  if (fileExists(index)) return readShards(dir, index);
  throw noWeights(dir);
}

function noWeights(dir: string): QFormerError {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch (error) {
    return ioError(dir, error);
  }
  const pickled = names.filter((name) => /\.(bin|pt|pth)$/.test(name));
  if (pickled.length > 0) {
    const message = `${dir}: weights are stored only as ${pickled[0]}; safetensors are needed (${SINGLE} or shards)`;
    return new QFormerError('UNSUPPORTED', message, { dir, files: pickled });
  }
  const loose = names.filter((name) => name.endsWith('.safetensors'));
  const hint = loose.length > 0 ? `; found ${listed(loose)} without an index` : '';
  return new QFormerError('IO', `${dir}: has neither ${SINGLE} nor ${INDEX}${hint}`, { dir, files: loose });
}

function readShards(dir: string, index: string): Map<string, TensorEntry> {
  const weightMap = readWeightMap(dir, index);
  const names = [...new Set(weightMap.values())];
  const missing = names.filter((name) => statOptional(join(dir, name)) === undefined);
  if (missing.length > 0) {
    const message = `${dir}: ${missing.length} of ${names.length} shards are missing: ${listed(missing)}`;
    throw new QFormerError('IO', message, { dir, missing });
  }
  const tensors = new Map<string, TensorEntry>();
  for (const name of names) addShard(tensors, readSafetensorsHeader(join(dir, name)));
  checkPlaces(weightMap, tensors, dir, index);
  return tensors;
}

function readWeightMap(dir: string, index: string): Map<string, string> {
  const fields = new JsonFields(index, readJsonObject(index));
  const raw = fields.optionalObject('weight_map') && (fields.raw('weight_map') as Record<string, unknown>);
  if (raw === undefined)
    throw new QFormerError('FORMAT', `${index}: weight_map is missing`, { file: index, key: 'weight_map' });
  const weightMap = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(raw)) {
    if (typeof shard !== 'string' || !isPlainName(shard)) {
      const message = `${index}: weight_map['${tensor}'] must name a .safetensors file in ${dir}, got ${describe(shard)}`;
      throw new QFormerError('FORMAT', message, { file: index, tensor });
    }
    weightMap.set(tensor, shard);
  }
  if (weightMap.size === 0)
    throw new QFormerError('FORMAT', `${index}: weight_map is empty`, { file: index, key: 'weight_map' });
  return weightMap;
}

// No separators of any platform and no drive letters: a name that cannot leave the folder.
function isPlainName(name: string): boolean {
  return name.length <= 255 && name.endsWith('.safetensors') && !/[/\\:\0]/.test(name);
}

function addShard(tensors: Map<string, TensorEntry>, shard: Map<string, TensorEntry>): void {
  for (const [name, entry] of shard) {
    const other = tensors.get(name);
    if (other !== undefined) {
      const message = `tensor '${name}' is stored twice, in ${other.file} and in ${entry.file}`;
      throw new QFormerError('FORMAT', message, { tensor: name, files: [other.file, entry.file] });
    }
    tensors.set(name, entry);
  }
}

function checkPlaces(
  weightMap: Map<string, string>,
  tensors: Map<string, TensorEntry>,
  dir: string,
  index: string,
): void {
  for (const [tensor, shard] of weightMap) {
    const file = join(dir, shard);
    const actual = tensors.get(tensor)?.file;
    if (actual === file) continue;
    const where = actual === undefined ? 'is in no shard' : `is in ${actual}`;
    const message = `${index}: tensor '${tensor}' should be in ${file}, but ${where}`;
    throw new QFormerError('FORMAT', message, { file: index, tensor });
  }
}

// Published embeddings were padded to a multiple of 64 rows without a note in config.json: the tensors are right.
function withTableSizes(config: ModelConfig, tensors: Map<string, TensorEntry>): ModelConfig {
  const prefix = config.vision === undefined ? '' : 'language_model.';
  const vocabSize = rows(tensors, `${prefix}model.embed_tokens.weight`) ?? config.text.vocabSize;
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

function listed(names: readonly string[]): string {
  const more = names.length > MAX_LISTED ? `, … (${names.length} in all)` : '';
  return names.slice(0, MAX_LISTED).join(', ') + more;
}
