// Pixels → rows for the language model: features of the vision tower, Q-Former, projection. The rows depend on picture,
// instruction and an adapter of these parts, and are cached under all three, beside the features; so a second question about a
// picture costs no ViT pass, a repeated question nothing.

import { QFormerError } from '../../errors.js';
import type { PreprocessorConfig } from '../../io/side-config.js';
import type { AdapterPart } from '../../io/adapter.js';
import type { AdapterSet } from '../../models/adapters.js';
import type { EncodeImageOptions, VisionLanguageModel } from '../../models/model.js';
import { scope, type Tensor } from '../../tensor/index.js';
import { ImageFeatures } from './image-features.js';
import type { SequenceImage } from '../scheduling/sequence.js';
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
    private readonly adapters?: AdapterSet,
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

  /**
   * The image's rows: [num_query, hidden] f32, valid until the next call or the end of the current scope. `adapter`: the
   * identity of the request's.
   */
  tokens(image: SequenceImage, instructionIds: readonly number[] | undefined, adapter?: string): Tensor {
    const key = `${image.digest}:${instructionIds?.join(',') ?? ''}:${this.#identityOf(adapter, 'vision', 'qformer')}`;
    const cached = this.#cache.get(key);
    if (cached !== undefined) return cached;
    const { imageTokens } = this.model;
    if (imageTokens === undefined) throw new QFormerError('UNSUPPORTED', 'this model reads no images');
    const instructions = instructionIds === undefined ? undefined : [instructionIds];
    const rows = scope(() => {
      const visual = this.#identityOf(adapter, 'vision');
      const features = this.#during(visual, () => this.features.of(image, visual));
      const own = this.#identityOf(adapter, 'qformer');
      return this.#during(own, () => imageTokens.call(this.model, features, 1, instructions));
    });
    return this.#cache.set(key, rows);
  }

  #identityOf(adapter: string | undefined, ...parts: AdapterPart[]): string {
    return this.adapters?.identityOf(adapter, parts) ?? '';
  }

  #during<T>(identity: string, pass: () => T): T {
    return this.adapters === undefined ? pass() : this.adapters.during(this.adapters.active(identity), pass);
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
