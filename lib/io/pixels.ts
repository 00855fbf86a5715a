// Uncompressed pixels: what callers may pass, what decoding gives, and the step between them.

import { QFormerError, describe } from '../errors.js';
import type { PixelBuffers } from './pixel-buffers.js';

/** Pixels in row-major order; 1 channel is gray, the fourth (alpha) is dropped. */
export interface RawPixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  channels: 1 | 3 | 4;
}

/** Decoded image, `data`: [height, width, 3] u8; nobody else uses its buffer, which may be transferred. */
export interface RawImage {
  data: Uint8Array<ArrayBuffer>;
  width: number;
  height: number;
}

/** Throws INVALID_ARGUMENT when an image is larger than allowed; sizes in pixels. */
export function checkPixels(name: string, width: number, height: number, maxPixels: number): void {
  if (width * height <= maxPixels) return;
  const message = `${name}: ${width} × ${height} pixels, more than the limit of ${maxPixels} (maxPixels)`;
  throw new QFormerError('INVALID_ARGUMENT', message, { width, height, maxPixels });
}

/**
 * Checks pixels given by the caller and makes them RGB. Always a copy: the result is transferred to a worker, and the caller's
 * buffer must survive that. Throws INVALID_ARGUMENT.
 */
export function fromPixels(pixels: RawPixels, maxPixels: number, buffers: PixelBuffers): RawImage {
  const { data, width, height, channels } = pixels;
  for (const [key, value] of [
    ['width', width],
    ['height', height],
  ] as const) {
    if (Number.isSafeInteger(value) && value > 0) continue;
    throw new QFormerError(
      'INVALID_ARGUMENT',
      `pixels: ${key} must be a positive whole number, got ${describe(value)}`,
    );
  }
  if (channels !== 1 && channels !== 3 && channels !== 4) {
    throw new QFormerError('INVALID_ARGUMENT', `pixels: channels must be 1, 3 or 4, got ${describe(channels)}`);
  }
  if (!(data instanceof Uint8Array) && !(data instanceof Uint8ClampedArray)) {
    throw new QFormerError('INVALID_ARGUMENT', `pixels: data must be a Uint8Array, got ${describe(data)}`);
  }
  checkPixels('pixels', width, height, maxPixels);
  if (data.length !== width * height * channels) {
    const message = `pixels: data must have ${width} × ${height} × ${channels} bytes, got ${data.length}`;
    throw new QFormerError('INVALID_ARGUMENT', message);
  }
  return { data: toRgb(data, channels, buffers), width, height };
}

/** `data`: [pixels, channels] u8 → [pixels, 3] in one of `buffers`: gray is repeated, alpha dropped. */
export function toRgb(
  data: Uint8Array | Uint8ClampedArray,
  channels: 1 | 3 | 4,
  buffers: PixelBuffers,
): Uint8Array<ArrayBuffer> {
  const rgb = buffers.take((data.length / channels) * 3);
  if (channels === 3) {
    rgb.set(data);
    return rgb;
  }
  const [green, blue] = channels === 1 ? [0, 0] : [1, 2];
  for (let from = 0, to = 0; to < rgb.length; from += channels, to += 3) {
    rgb[to] = data[from]!;
    rgb[to + 1] = data[from + green]!;
    rgb[to + 2] = data[from + blue]!;
  }
  return rgb;
}
