// Checkpoints that compare images with texts instead of writing text (Blip2ForImageTextRetrieval): a vision tower, a Q-Former
// with a text path, two projections into one space and a matching head. Their config.json has the model_type of BLIP-2 and a
// text_config that means nothing; only `architectures` tells them apart.

import { configFile, readCheckpointFiles, type CheckpointFiles } from './checkpoint.js';
import {
  parseQFormer,
  parseVision,
  readArchitectures,
  section,
  type QFormerConfig,
  type VisionConfig,
} from './config.js';
import { readJsonObject } from './files.js';
import { JsonFields } from './json-fields.js';
import { BOUNDS } from './model-fields.js';
import type { PreprocessorConfig } from './side-config.js';

/** The configuration of a retrieval checkpoint. */
export interface RetrievalConfig {
  modelType: 'blip-2';
  vision: VisionConfig;
  qformer: QFormerConfig;
  numQueryTokens: number;
  /** Width of the space in which images and texts are compared. */
  projectionSize: number;
}

/** A retrieval checkpoint; `tokenizerDir` holds the Q-Former's tokenizer. */
export interface RetrievalCheckpoint extends CheckpointFiles {
  config: RetrievalConfig;
  preprocessor: PreprocessorConfig;
}

/** Whether the folder `dir` holds a retrieval checkpoint. Throws INVALID_ARGUMENT, IO and FORMAT. */
export function isRetrievalCheckpoint(dir: string): boolean {
  const file = configFile(dir);
  const fields = new JsonFields(file, readJsonObject(file));
  return readArchitectures(fields).some((name) => name.endsWith('ForImageTextRetrieval'));
}

/** Opens a folder for which `isRetrievalCheckpoint` holds. Errors as `openCheckpoint`. */
export function openRetrievalCheckpoint(dir: string): RetrievalCheckpoint {
  const file = configFile(dir);
  const config = parseRetrievalConfig(new JsonFields(file, readJsonObject(file)));
  const files = readCheckpointFiles(dir, config);
  return { ...files, config, preprocessor: files.preprocessor! };
}

function parseRetrievalConfig(fields: JsonFields): RetrievalConfig {
  const modelType = fields.optionalString('model_type');
  if (modelType !== 'blip-2') throw fields.unsupported('model_type', modelType, 'image-text retrieval: blip-2');
  const vision = parseVision(section(fields, 'vision_config'));
  return {
    modelType,
    vision,
    qformer: parseQFormer(section(fields, 'qformer_config'), vision.hiddenSize, true),
    numQueryTokens: fields.integer('num_query_tokens', { min: 1, max: 4096, default: 32 }),
    projectionSize: fields.integer('image_text_hidden_size', { ...BOUNDS.width, default: 256 }),
  };
}
