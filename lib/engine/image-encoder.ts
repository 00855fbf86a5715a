// Pixels → rows for the language model: features of the vision tower, Q-Former, projection. The rows depend on picture and
// instruction and are cached under both, beside the features; so a second question about a picture costs no ViT pass, a
// repeated question nothing.

import { QFormerError } from '../errors.js';
import type { PreprocessorConfig } from '../io/side-config.js';
import type { EncodeImageOptions, VisionLanguageModel } from '../models/model.js';
import { scope, type Tensor } from '../tensor/index.js';
import { ImageFeatures } from './image-features.js';
import type { SequenceImage } from './sequence.js';
import { TensorCache } from './tensor-cache.js';

/** Runs the vision side of a model, with a cache. */
export class ImageEncoder {
  readonly features: ImageFeatures;
  readonly #cache: TensorCache;

  constructor(
    private readonly model: VisionLanguageModel,
    preprocessor: PreprocessorConfig,
    device: string,
    cacheBytes: number,
    options: EncodeImageOptions = {},
  ) {
    this.#cache = new TensorCache(cacheBytes);
    this.features = new ImageFeatures(
      (pixels) => model.encodeImage!(pixels, options),
      preprocessor,
      device,
      this.#cache,
    );
  }

  /** The image's rows: [num_query, hidden] f32, valid until the next call or the end of the current scope. */
  tokens(image: SequenceImage, instructionIds: readonly number[] | undefined): Tensor {
    const key = `${image.digest}:${instructionIds?.join(',') ?? ''}`;
    const cached = this.#cache.get(key);
    if (cached !== undefined) return cached;
    const { imageTokens } = this.model;
    if (imageTokens === undefined) throw new QFormerError('UNSUPPORTED', 'this model reads no images');
    const instructions = instructionIds === undefined ? undefined : [instructionIds];
    return this.#cache.set(
      key,
      scope(() => imageTokens.call(this.model, this.features.of(image), 1, instructions)),
    );
  }

  /** ViT passes so far. */
  get encodedImages(): number {
    return this.features.encoded;
  }

  /** Bytes of cached rows and features. */
  get cacheBytes(): number {
    return this.#cache.bytes;
  }

  /** Frees the cache and what is held. */
  dispose(): void {
    this.#cache.clear();
    this.features.dispose();
  }
}
