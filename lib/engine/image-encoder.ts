// Pixels → rows for the language model: resize (Pillow's bicubic), normalise, ViT, Q-Former, projection. The ViT's features
// depend on the picture alone and the Q-Former's output on picture and instruction, so both are cached under those keys;
// a second question about a picture costs no ViT pass, a repeated question nothing.

import { QFormerError } from '../errors.js';
import type { PreprocessorConfig } from '../io/side-config.js';
import type { VisionLanguageModel } from '../models/model.js';
import { Tensor, ops, scope } from '../tensor/index.js';
import type { SequenceImage } from './sequence.js';
import { TensorCache } from './tensor-cache.js';

/** Runs the vision side of a model, with a cache. */
export class ImageEncoder {
  readonly #cache: TensorCache;
  /** ViT passes so far. */
  encodedImages = 0;

  constructor(
    private readonly model: VisionLanguageModel,
    private readonly preprocessor: PreprocessorConfig,
    private readonly device: string,
    cacheBytes: number,
  ) {
    this.#cache = new TensorCache(cacheBytes);
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
      scope(() => imageTokens.call(this.model, this.#features(image), 1, instructions)),
    );
  }

  /** Bytes of cached rows and features. */
  get cacheBytes(): number {
    return this.#cache.bytes;
  }

  /** Frees the cache. */
  dispose(): void {
    this.#cache.clear();
  }

  /** [tokens, vision_hidden] f32 */
  #features(image: SequenceImage): Tensor {
    const key = `${image.digest}:features`;
    const cached = this.#cache.get(key);
    if (cached !== undefined) return cached;
    this.encodedImages++;
    return this.#cache.set(
      key,
      scope(() => this.model.encodeImage!(this.#pixelValues(image))),
    );
  }

  /** [1, 3, size, size] f32 */
  #pixelValues({ data, width, height }: SequenceImage): Tensor {
    const { imageSize, rescaleFactor, mean, std } = this.preprocessor;
    const pixels = Tensor.fromArray(data, [height, width, 3], { device: this.device });
    const resized = ops.resizeBicubic(pixels, imageSize, imageSize);
    const normalized = ops.normalizeImage(resized, { rescale: rescaleFactor, mean, std });
    return normalized.reshape([1, 3, imageSize, imageSize]);
  }
}
