// BLIP-2 for image-text retrieval (Li et al. 2023, section 3.2): the same Q-Former read in three ways. Contrastive (ITC): the
// queries read the image, the text is read alone, both are projected into one space and normalised. Matching (ITM): queries and
// text see each other, and a two-way classifier on every query row is averaged over the rows.

import { Linear } from '../nn/linear.js';
import type { Parameter, ParameterSource } from '../nn/parameter.js';
import type { RetrievalConfig } from '../io/retrieval-checkpoint.js';
import { ops, scope, Tensor } from '../tensor/index.js';
import type { EncodeImageOptions } from './model.js';
import { QFormer } from './qformer.js';
import { VisionTransformer } from './vit.js';

/** Q-Former ids of a text: [CLS] … [SEP]. */
export type TextIds = readonly number[];

/** A BLIP-2 retrieval model. */
export class RetrievalModel {
  readonly visionModel: VisionTransformer;
  readonly qformer: QFormer;
  readonly queryTokens: Parameter;
  readonly queryPrefix: Parameter;
  readonly visionProjection: Linear;
  readonly textProjection: Linear;
  readonly itmHead: Linear;
  readonly #toUnit: Parameter;
  readonly #release: () => void;

  /** `release` frees what `source` loads; it is called by `dispose`. */
  constructor(
    source: ParameterSource,
    readonly config: RetrievalConfig,
    release: () => void,
  ) {
    const { vision, qformer, numQueryTokens, projectionSize } = config;
    const { hiddenSize } = qformer;
    this.#release = release;
    this.visionModel = new VisionTransformer(source, 'vision_model', vision);
    this.queryTokens = source.vector('query_tokens', [1, numQueryTokens, hiddenSize]);
    this.qformer = new QFormer(source, 'qformer', qformer, 'blip-2');
    const shape = [numQueryTokens, hiddenSize];
    this.queryPrefix = source.derived('qformer.prefix', shape, () => this.qformer.prefix(this.#queries()));
    this.visionProjection = new Linear(source, 'vision_projection', hiddenSize, projectionSize);
    this.textProjection = new Linear(source, 'text_projection', hiddenSize, projectionSize);
    this.itmHead = new Linear(source, 'itm_head', hiddenSize, 2);
    // An RMS norm with this weight gives rows of length 1.
    const weight = new Float32Array(projectionSize).fill(projectionSize ** -0.5);
    this.#toUnit = source.constant('retrieval.unit', weight, [projectionSize]);
  }

  /** pixelValues: [b, 3, size, size] f32 → [b · image_tokens, vision_hidden] */
  encodeImage(pixelValues: Tensor, options?: EncodeImageOptions): Tensor {
    return this.visionModel.forward(pixelValues, options);
  }

  /** ITC, images: features [batch · image_tokens, vision_hidden] → unit rows [batch · num_query, projection] f32 */
  imageVectors(features: Tensor, batch: number): Tensor {
    return scope(() => {
      const prefix = this.queryPrefix.tensor;
      const { queries } = this.qformer.forward({ queries: this.#queries(), prefix, features, batch });
      return this.#unit(this.visionProjection, queries!);
    });
  }

  /** ITC, texts, each represented by its first token: [texts, projection] f32, unit rows */
  textVectors(texts: readonly TextIds[]): Tensor {
    return scope(() => {
      const { text } = this.qformer.forward({ batch: texts.length, text: texts });
      const first = new Int32Array(texts.length);
      for (let i = 1; i < texts.length; i++) first[i] = first[i - 1]! + texts[i - 1]!.length;
      const at = Tensor.fromArray(first, [first.length], { device: text!.device });
      return this.#unit(this.textProjection, ops.gatherRows(text!, at));
    });
  }

  /**
   * ITM: whether text i describes image `images[i]` of features [images · image_tokens, vision_hidden] → scores of every query row,
   * (no match, match): [texts · num_query, 2] f32, to be averaged over a text's rows
   */
  matchScores(features: Tensor, images: readonly number[], texts: readonly TextIds[]): Tensor {
    return scope(() => {
      const input = { queries: this.#queries(), features, images, batch: texts.length, text: texts };
      return this.itmHead.forward(this.qformer.forward(input).queries!).cast('f32');
    });
  }

  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void {
    this.visionModel.dispose();
    this.#release();
  }

  #queries(): Tensor {
    const { numQueryTokens, qformer } = this.config;
    return this.queryTokens.tensor.reshape([numQueryTokens, qformer.hiddenSize]);
  }

  #unit(projection: Linear, x: Tensor): Tensor {
    return ops.rmsNorm(projection.forward(x).cast('f32'), this.#toUnit.tensor, 1e-24);
  }
}
