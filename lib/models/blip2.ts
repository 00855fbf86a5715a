// The composition of BLIP-2 and InstructBLIP: vision tower → Q-Former → projection → rows of the language model's input.
// The two families differ in the Q-Former's embeddings and in whether it reads the instruction; nothing else.
// Current checkpoints mark the image rows by a placeholder id; legacy ones put them in front of the text. Both are
// brought to one form here: a prompt with a slot per image row, and the rows' numbers.

import type { ModelConfig } from '../io/config.js';
import { QFormerError } from '../errors.js';
import { Linear } from '../nn/linear.js';
import type { LoraContext } from '../nn/lora.js';
import type { Parameter, ParameterSource } from '../nn/parameter.js';
import { scope, type Tensor } from '../tensor/index.js';
import type { EncodeImageOptions, LanguageModel, VisionLanguageModel } from './model.js';
import { QFormer } from './qformer.js';
import { VisionTransformer } from './vit.js';

/** A BLIP-2 or InstructBLIP model over any language model. */
export class Blip2 implements VisionLanguageModel {
  readonly visionModel: VisionTransformer;
  readonly qformer: QFormer;
  readonly queryTokens: Parameter;
  /** What the Q-Former computes of the queries before it looks at an image or a text. */
  readonly queryPrefix: Parameter;
  readonly languageProjection: Linear;
  readonly #lora: LoraContext | undefined;
  readonly #release: () => void;

  /** `release` frees what `source` loads; it is called by `dispose`. */
  constructor(
    source: ParameterSource,
    readonly config: ModelConfig,
    readonly languageModel: LanguageModel,
    release: () => void,
  ) {
    const { vision, qformer, numQueryTokens, modelType } = config;
    if (vision === undefined || qformer === undefined || (modelType !== 'blip-2' && modelType !== 'instructblip')) {
      throw new QFormerError('INTERNAL', `${modelType} is no vision-language configuration`);
    }
    this.#release = release;
    this.#lora = source.lora;
    this.visionModel = new VisionTransformer(source, 'vision_model', vision);
    this.queryTokens = source.vector('query_tokens', [1, numQueryTokens, qformer.hiddenSize]);
    this.qformer = new QFormer(source, 'qformer', qformer, modelType);
    const shape = [numQueryTokens, qformer.hiddenSize];
    this.queryPrefix = source.derived('qformer.prefix', shape, () => {
      return this.qformer.prefix(this.queryTokens.tensor.reshape(shape));
    });
    this.languageProjection = new Linear(source, 'language_projection', qformer.hiddenSize, languageModel.hiddenSize);
  }

  encodeImage(pixelValues: Tensor, options?: EncodeImageOptions): Tensor {
    return this.visionModel.forward(pixelValues, options);
  }

  imageTokens(features: Tensor, batch: number, instructionIds?: readonly (readonly number[])[]): Tensor {
    const { qformer: config, numQueryTokens } = this.config;
    if (config!.useTextInput && instructionIds === undefined) {
      throw new QFormerError('INVALID_ARGUMENT', 'this Q-Former reads the instruction, but none was given');
    }
    return scope(() => {
      const queries = this.queryTokens.tensor.reshape([numQueryTokens, config!.hiddenSize]);
      const output = this.qformer.forward({
        queries,
        // computed without adapters
        ...(this.#lora?.rows === undefined && { prefix: this.queryPrefix.tensor }),
        features,
        batch,
        text: instructionIds,
      });
      return this.languageProjection.forward(output.queries!);
    });
  }

  dispose(): void {
    this.visionModel.dispose();
    this.#release();
  }
}

/** A prompt with one slot per image row. */
export interface PlacedPrompt {
  ids: number[];
  /** positions in `ids` that image rows replace, ascending */
  imageRows: number[];
}

/**
 * Gives every image row a slot in the prompt. Ids that already hold exactly the placeholders of `images` images are taken
 * as they are; otherwise the slots are put in front of the text, as the processor and the legacy layout both do.
 * INVALID_ARGUMENT when the ids hold another number of placeholders.
 */
export function placeImageTokens(config: ModelConfig, ids: readonly number[], images: number): PlacedPrompt {
  const { imageTokenId } = config;
  const slots = images * config.numQueryTokens;
  const marked = ids.flatMap((id, i) => (id === imageTokenId ? [i] : []));
  if (marked.length === slots) return { ids: [...ids], imageRows: marked };
  if (marked.length > 0) {
    const message = `the prompt holds ${marked.length} image placeholders, ${images} images need ${slots}`;
    throw new QFormerError('INVALID_ARGUMENT', message, { placeholders: marked.length, expected: slots });
  }
  // the legacy layout has no id for a slot; the row is overwritten, so any id of the vocabulary serves
  const front = new Array<number>(slots).fill(imageTokenId ?? 0);
  return { ids: [...front, ...ids], imageRows: front.map((_, i) => i) };
}
