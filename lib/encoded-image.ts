// Images as requests take them: inputs to be decoded, or images that the worker has encoded already and keeps.

import type { EngineClient } from './engine/client.js';
import type { TaskImage } from './engine/task.js';
import { QFormerError } from './errors.js';
import { loadImage, type ImageInput, type ImageOptions } from './io/image.js';

/** An image whose features the model keeps until it is disposed; made by `Model.encodeImage`, for that model alone. */
export class EncodedImage implements Disposable {
  readonly #client: EngineClient;
  readonly #digest: string;
  #disposed = false;

  /** @internal */
  constructor(client: EngineClient, digest: string) {
    this.#client = client;
    this.#digest = digest;
  }

  /** Frees the features. May be called again. */
  dispose(): void {
    if (!this.#disposed) this.#client.release(this.#digest);
    this.#disposed = true;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal INVALID_ARGUMENT once disposed, or for another model. */
  requestedBy(client: EngineClient): TaskImage {
    if (this.#disposed) throw new QFormerError('INVALID_ARGUMENT', 'the encoded image was disposed');
    if (client === this.#client) return { held: this.#digest };
    throw new QFormerError('INVALID_ARGUMENT', 'the image was encoded by another model');
  }
}

/** Whatever may stand for an image in a request. */
export type ModelImage = ImageInput | EncodedImage;

/** The image as the worker of `client` takes it. Errors as `loadImage`. */
export async function requestImage(client: EngineClient, image: ModelImage, options: ImageOptions): Promise<TaskImage> {
  return image instanceof EncodedImage ? image.requestedBy(client) : loadImage(image, options, client.pixelBuffers);
}
