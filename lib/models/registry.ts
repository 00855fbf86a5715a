// Which class runs which `model_type`. A new architecture is one file and one line here.

import type { Checkpoint } from '../io/checkpoint.js';
import type { TextConfig } from '../io/config.js';
import { QFormerError } from '../errors.js';
import type { ParameterSource } from '../nn/parameter.js';
import { Blip2 } from './blip2.js';
import { Llama } from './llama.js';
import type { LanguageModel, VisionLanguageModel } from './model.js';
import { Opt } from './opt.js';
import { T5 } from './t5.js';
import type { Weights } from './weights.js';

/** Builds a model: declares its parameters on `weights`, which the model owns from then on. */
export type ModelFactory = (checkpoint: Checkpoint, weights: Weights) => VisionLanguageModel;

function createLanguageModel(source: ParameterSource, prefix: string, config: TextConfig): LanguageModel {
  switch (config.modelType) {
    case 'llama':
      return new Llama(source, prefix, config);
    case 'opt':
      return new Opt(source, prefix, config);
    case 't5':
      return new T5(source, prefix, config);
  }
}

const models = new Map<string, ModelFactory>();

/** Makes `createModel` use `factory` for checkpoints of this model_type. INVALID_ARGUMENT when the type is taken. */
export function registerModel(modelType: string, factory: ModelFactory): void {
  if (models.has(modelType)) {
    throw new QFormerError('INVALID_ARGUMENT', `model_type '${modelType}' is already registered`, { modelType });
  }
  models.set(modelType, factory);
}

/** The model of a checkpoint, its parameters declared but not loaded; UNSUPPORTED for an unknown model_type. */
export function createModel(checkpoint: Checkpoint, weights: Weights): VisionLanguageModel {
  const { modelType } = checkpoint.config;
  const factory = models.get(modelType);
  if (factory === undefined) {
    const known = [...models.keys()];
    const message = `model_type '${modelType}' is not supported (known: ${known.join(', ')})`;
    throw new QFormerError('UNSUPPORTED', message, { modelType, known });
  }
  return factory(checkpoint, weights);
}

registerModel('blip-2', composed);
registerModel('instructblip', composed);
registerModel('llama', textOnly);
registerModel('opt', textOnly);
registerModel('t5', textOnly);

function composed({ config }: Checkpoint, weights: Weights): VisionLanguageModel {
  const languageModel = createLanguageModel(weights, 'language_model.', config.text);
  return new Blip2(weights, config, languageModel, () => weights.dispose());
}

function textOnly({ config }: Checkpoint, weights: Weights): VisionLanguageModel {
  const languageModel = createLanguageModel(weights, '', config.text);
  return { config, languageModel, dispose: () => weights.dispose() };
}
