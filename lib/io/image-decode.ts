// Encoded bytes → the pixels that Pillow's convert('RGB') gives. sharp decodes; two kinds need a step of ours, where libvips
// converts by colour science and Pillow by arithmetic:
//   16-bit gray   min(v, 255): Pillow clips, it does not take the high byte
//   CMYK JPEG     nk = 255 - k; channel = nk - c·nk / 255, rounded as Pillow does
// sharp is imported with the first image: it costs 50 ms and 15 MB that a text-only user need not pay.

import type { Sharp, SharpOptions } from 'sharp';

import { QFormerError } from '../errors.js';
import type { ImageLimits } from './image.js';
import type { PixelBuffers } from './pixel-buffers.js';
import { checkPixels, toRgb, type RawImage } from './pixels.js';

type SharpFactory = (input: Uint8Array, options: SharpOptions) => Sharp;

const SIGNATURES: readonly (readonly [string, RegExp])[] = [
  ['png', /^\x89PNG\r\n\x1a\n/],
  ['jpeg', /^\xff\xd8\xff/],
  ['webp', /^RIFF[^]{4}WEBP/],
  ['gif', /^GIF8[79]a/],
  ['tiff', /^(II\*\0|MM\0\*)/],
  ['avif', /^[^]{4}ftyp(avif|avis|mif1|miaf)/],
];
// byte offsets in a PNG: IHDR is always the first chunk
const PNG_COLOUR_TYPE = 25;
const PNG_GRAY = 0;

let loading: Promise<SharpFactory> | undefined;

/** Decodes an image; `name` is used in messages. Rejects with FORMAT, INVALID_ARGUMENT (too many pixels), UNSUPPORTED. */
export async function decodeImage(
  bytes: Uint8Array,
  name: string,
  limits: ImageLimits,
  buffers: PixelBuffers,
): Promise<RawImage> {
  const format = sniff(bytes);
  if (format === undefined) {
    const known = SIGNATURES.map(([type]) => type).join(', ');
    throw new QFormerError('FORMAT', `${name}: not an image of a known format (${known})`);
  }
  const sharp = await loadSharp();
  // the limit is ours, with a better message
  const options: SharpOptions = { ignoreIcc: true, failOn: 'error', limitInputPixels: false, autoOrient: limits.exif };
  try {
    const { width, height, space, channels } = await sharp(bytes, options).metadata();
    checkPixels(name, width, height, limits.maxPixels);
    const image = sharp(bytes, options);
    if (space === 'cmyk') return await decodeCmyk(image, buffers);
    const gray16 = space === 'grey16' && (channels === 1 || (format === 'png' && bytes[PNG_COLOUR_TYPE] === PNG_GRAY));
    return gray16 ? await decodeGray16(image, buffers) : await decodeRgb(image, buffers);
  } catch (error) {
    if (error instanceof QFormerError) throw error;
    const reason = (error as Error).message.trim().replace(/\s+/g, ' ');
    throw new QFormerError(
      'FORMAT',
      `${name}: cannot be decoded as ${format} (${reason})`,
      { format },
      { cause: error },
    );
  }
}

function sniff(bytes: Uint8Array): string | undefined {
  const head = String.fromCharCode(...bytes.subarray(0, 16));
  return SIGNATURES.find(([, signature]) => signature.test(head))?.[0];
}

function loadSharp(): Promise<SharpFactory> {
  loading ??= import('sharp').then(
    (module) => module.default,
    (error: unknown) => {
      loading = undefined;
      const message = `images need the package sharp, which cannot be loaded (${(error as Error).message})`;
      throw new QFormerError('UNSUPPORTED', message, {}, { cause: error });
    },
  );
  return loading;
}

async function decodeRgb(image: Sharp, buffers: PixelBuffers): Promise<RawImage> {
  const { data, info } = await image.removeAlpha().toColourspace('srgb').raw().toBuffer({ resolveWithObject: true });
  // toRgb also copies three channels: the buffers that sharp gives out cannot be transferred to a worker
  return { data: toRgb(data, info.channels as 1 | 3 | 4, buffers), width: info.width, height: info.height };
}

async function decodeGray16(image: Sharp, buffers: PixelBuffers): Promise<RawImage> {
  const pixels = image.removeAlpha().toColourspace('grey16').raw({ depth: 'ushort' });
  const { data, info } = await pixels.toBuffer({ resolveWithObject: true });
  const gray = new Uint8Array(info.width * info.height);
  for (let i = 0; i < gray.length; i++) gray[i] = Math.min(data.readUInt16LE(2 * i), 255);
  return { data: toRgb(gray, 1, buffers), width: info.width, height: info.height };
}

async function decodeCmyk(image: Sharp, buffers: PixelBuffers): Promise<RawImage> {
  const pixels = image.pipelineColourspace('cmyk').toColourspace('cmyk').raw();
  const { data, info } = await pixels.toBuffer({ resolveWithObject: true });
  const rgb = buffers.take(info.width * info.height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += info.channels, to += 3) {
    const light = 255 - data[from + 3]!;
    for (let c = 0; c < 3; c++) rgb[to + c] = light - divideBy255(data[from + c]! * light);
  }
  return { data: rgb, width: info.width, height: info.height };
}

// Rounded quotient without a division; exact for products of two bytes.
function divideBy255(product: number): number {
  const t = product + 128;
  return ((t >> 8) + t) >> 8;
}
