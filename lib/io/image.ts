// Images of any accepted form → RGB pixels, on the main thread (the decoding itself runs on sharp's threads). The pixels are those
// of Pillow's `Image.open(…).convert('RGB')`, because the reference's answers depend on them: alpha is dropped, not composited; colour
// profiles, gamma and, unless asked for, EXIF orientation are ignored. Limits hold before anything large is allocated.

import { QFormerError, checkOptions, describe } from '../errors.js';
import { decodeImage } from './image-decode.js';
import { readImageBytes } from './image-source.js';
import { PixelBuffers } from './pixel-buffers.js';
import { fromPixels, type RawImage, type RawPixels } from './pixels.js';

export type { RawImage, RawPixels } from './pixels.js';

/** Path, file: / data: / http(s): URL, encoded bytes, Blob, or pixels. */
export type ImageInput = string | URL | Uint8Array | Blob | RawPixels;

/** Limits and permissions of `loadImage`. */
export interface ImageOptions {
  /** Turn the image as its EXIF orientation says. Default false, as for a PIL image. */
  exif?: boolean;
  /** Largest encoded size, in bytes. Default 64 MiB. */
  maxBytes?: number;
  /** Largest width × height. Default 89,478,485, the point where Pillow warns of a decompression bomb. */
  maxPixels?: number;
  /** Fetch http: and https: URLs. Default false. */
  allowHttp?: boolean;
  /** Time for a fetch, in ms. Default 30,000. */
  httpTimeout?: number;
  signal?: AbortSignal;
}

/** Options with the defaults filled in. */
export type ImageLimits = Required<Omit<ImageOptions, 'signal'>> & Pick<ImageOptions, 'signal'>;

const OPTIONS = ['exif', 'maxBytes', 'maxPixels', 'allowHttp', 'httpTimeout', 'signal'];

/**
 * Reads and decodes an image, into memory of `buffers`. Rejects with INVALID_ARGUMENT (not an image input, beyond a limit, http
 * not allowed), IO (cannot be read), FORMAT (not an image, truncated, damaged), UNSUPPORTED (sharp is not usable) and ABORTED.
 */
export async function loadImage(
  input: ImageInput,
  options: ImageOptions = {},
  buffers = new PixelBuffers(),
): Promise<RawImage> {
  const limits = checkLimits(options);
  throwIfAborted(limits.signal);
  if (isRawPixels(input)) return fromPixels(input, limits.maxPixels, buffers);
  const { bytes, name } = await readImageBytes(input, limits);
  throwIfAborted(limits.signal);
  const image = await decodeImage(bytes, name, limits, buffers);
  throwIfAborted(limits.signal);
  return image;
}

function checkLimits(options: ImageOptions): ImageLimits {
  checkOptions('loadImage', options, OPTIONS);
  const count = (key: 'maxBytes' | 'maxPixels' | 'httpTimeout', fallback: number): number => {
    const value = options[key] ?? fallback;
    if (Number.isSafeInteger(value) && value > 0) return value;
    throw new QFormerError(
      'INVALID_ARGUMENT',
      `loadImage: ${key} must be a positive whole number, got ${describe(value)}`,
    );
  };
  const flag = (key: 'exif' | 'allowHttp'): boolean => {
    const value = options[key] ?? false;
    if (typeof value === 'boolean') return value;
    throw new QFormerError('INVALID_ARGUMENT', `loadImage: ${key} must be true or false, got ${describe(value)}`);
  };
  return {
    exif: flag('exif'),
    maxBytes: count('maxBytes', 64 * 2 ** 20),
    maxPixels: count('maxPixels', 89_478_485),
    allowHttp: flag('allowHttp'),
    httpTimeout: count('httpTimeout', 30_000),
    signal: options.signal,
  };
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw new QFormerError('ABORTED', 'loading the image was aborted', {}, { cause: signal.reason as unknown });
  }
}

function isRawPixels(input: unknown): input is RawPixels {
  if (typeof input !== 'object' || input === null) return false;
  return 'data' in input && !(input instanceof Uint8Array) && !(input instanceof URL) && !(input instanceof Blob);
}
