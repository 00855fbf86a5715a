// Pixels → features of the vision tower: resize (Pillow's bicubic), normalise, ViT. They depend on the picture alone, so they
// are cached by its digest, and by the adapter where one changes the vision tower; those of a held image stay until it is released.
// Several images take one pass.

import { createHash } from 'node:crypto';
import { QFormerError, describe } from '../../errors.js';
import type { PreprocessorConfig } from '../../io/side-config.js';
import { keep, ops, scope, Tensor } from '../../tensor/index.js';
import type { SequenceImage } from '../scheduling/sequence.js';
import type { TaskImage } from '../task.js';
import type { TensorCache } from './tensor-cache.js';

/** Runs the vision tower, with a cache. */
export class ImageFeatures {
  /** Images that went through the vision tower so far. */
  encoded = 0;
  /** The adapter that is merged into the vision tower; '' for none. */
  merged = '';
  readonly #held = new Map<string, { features: Tensor; count: number; adapter: string }>();

  /** `encode`: pixelValues [b, 3, size, size] f32 → [b · tokens, hidden] */
  constructor(
    private readonly encode: (pixelValues: Tensor) => Tensor,
    private readonly preprocessor: PreprocessorConfig,
    private readonly device: string,
    private readonly cache: TensorCache,
  ) {}

  /** `adapter`: identity of the one that the vision tower runs with. [tokens, hidden], valid until the next call or the end of the current scope. INVALID_ARGUMENT for an image no longer held. */
  of(image: SequenceImage, adapter = this.merged): Tensor {
    return this.#known(image, adapter) ?? this.cache.set(keyOf(image, adapter), this.#run([image]));
  }

  /** The features of several images behind each other, [images · tokens, hidden], in the current scope. */
  ofAll(images: readonly SequenceImage[]): Tensor {
    if (images.length === 1) return this.of(images[0]!);
    return scope(() => {
      const missing = images.filter((image) => this.#known(image, this.merged) === undefined);
      const computed = missing.length > 0 ? this.#run(missing) : undefined;
      const part = (at: number): Tensor => {
        const tokens = computed!.shape[0]! / missing.length;
        return computed!.slice(0, at * tokens, (at + 1) * tokens);
      };
      const all = images.map((image) =>
        missing.includes(image) ? part(missing.indexOf(image)) : this.#known(image, this.merged)!,
      );
      const result = stack(all, this.device);
      // Last, because a new entry may push out one that is in `all`.
      missing.forEach((image, at) => this.cache.set(keyOf(image, this.merged), copyOf(part(at))));
      return result;
    });
  }

  /** Keeps the features of `image` until they are released as often as they were held. */
  hold(image: SequenceImage): void {
    const held = this.#held.get(image.digest);
    if (held !== undefined) held.count++;
    else {
      const adapter = this.merged;
      scope(() => this.#held.set(image.digest, { features: keep(copyOf(this.of(image))), count: 1, adapter }));
    }
  }

  /** Undoes one `hold`. */
  release(digest: string): void {
    const held = this.#held.get(digest);
    if (held === undefined || --held.count > 0) return;
    this.#held.delete(digest);
    held.features.dispose();
  }

  /** Frees what is held. */
  dispose(): void {
    for (const { features } of this.#held.values()) features.dispose();
    this.#held.clear();
  }

  #known(image: SequenceImage, adapter: string): Tensor | undefined {
    const held = this.#held.get(image.digest);
    const features = held?.adapter === adapter ? held.features : this.cache.get(keyOf(image, adapter));
    if (features !== undefined || image.data.length > 0) return features;
    if (held !== undefined) {
      const message = 'the image was encoded with other weights of the vision tower; pass the image itself';
      throw new QFormerError('INVALID_ARGUMENT', message, { adapter });
    }
    throw new QFormerError('INVALID_ARGUMENT', 'the encoded image was disposed');
  }

  #run(images: readonly SequenceImage[]): Tensor {
    this.encoded += images.length;
    return scope(() => {
      const { imageSize } = this.preprocessor;
      const pixels = stack(
        images.map((image) => this.#pixelValues(image)),
        this.device,
      );
      return this.encode(pixels.reshape([images.length, 3, imageSize, imageSize]));
    });
  }

  /** [3, size, size] f32 */
  #pixelValues({ data, width, height }: SequenceImage): Tensor {
    const { imageSize, rescaleFactor, mean, std } = this.preprocessor;
    const pixels = Tensor.fromArray(data, [height, width, 3], { device: this.device });
    const resized = ops.resizeBicubic(pixels, imageSize, imageSize);
    return ops.normalizeImage(resized, { rescale: rescaleFactor, mean, std });
  }
}

/** Checks pixels as they arrive and computes their digest; a held image has a digest only. Throws INVALID_ARGUMENT. */
export function readPixels(image: TaskImage): SequenceImage {
  if ('held' in image) return { digest: image.held, data: new Uint8Array(0), width: 0, height: 0 };
  const { data, width, height } = image;
  const isSize = (n: number): boolean => Number.isSafeInteger(n) && n > 0;
  if (!isSize(width) || !isSize(height)) {
    throw new QFormerError('INVALID_ARGUMENT', `image size must be positive integers, got ${width} × ${height}`);
  }
  if (!(data instanceof Uint8Array) || data.length !== width * height * 3) {
    const found = data instanceof Uint8Array ? `${data.length} bytes` : describe(data);
    const message = `an RGB image of ${width} × ${height} has ${width * height * 3} bytes, got ${found}`;
    throw new QFormerError('INVALID_ARGUMENT', message);
  }
  const digest = createHash('sha256').update(`${width}x${height}:`).update(data).digest('base64');
  return { digest, data, width, height };
}

const copyOf = (x: Tensor): Tensor => x.cast(x.dtype);
const keyOf = (image: SequenceImage, adapter: string): string => `${image.digest}:features:${adapter}`;

/** Tensors of one shape and dtype behind each other along the first axis. */
function stack(parts: readonly Tensor[], device: string): Tensor {
  const [first] = parts as [Tensor];
  if (parts.length === 1) return first;
  const { shape, dtype } = first;
  const rows = shape[0]!;
  const result = Tensor.empty([parts.length * rows, ...shape.slice(1)], { device, dtype });
  parts.forEach((part, i) => result.slice(0, i * rows, (i + 1) * rows).copyFrom(part));
  return result;
}
