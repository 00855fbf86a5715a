// A gallery of any size out of a few pictures: copies that are turned, mirrored, zoomed and brightened, the same in every run.

import { mkdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import sharp, { type Sharp } from 'sharp';

/** A picture of the gallery and the one it was made from. */
export interface GalleryImage {
  file: string;
  original: string;
}

/** Writes `count` PNG files of 128 × 128 pixels to `dir`, going round the originals; the first round is unchanged. */
export async function makeGallery(originals: readonly string[], count: number, dir: string): Promise<GalleryImage[]> {
  mkdirSync(dir, { recursive: true });
  const images: GalleryImage[] = [];
  for (let i = 0; i < count; i++) {
    const original = originals[i % originals.length]!;
    const round = Math.floor(i / originals.length);
    const file = join(dir, `${basename(original, '.png')}-${round}.png`);
    await variant(original, round, i).toFile(file);
    images.push({ file, original });
  }
  return images;
}

function variant(file: string, round: number, i: number): Sharp {
  if (round === 0) return sharp(file);
  const angle = ((i * 7) % 25) - 12;
  const zoom = 128 + ((i * 5) % 24);
  const turned = sharp(file)
    .rotate(angle, { background: '#ffffff' })
    .resize(zoom, zoom)
    .extract({ left: (zoom - 128) >> 1, top: (zoom - 128) >> 1, width: 128, height: 128 })
    .modulate({ brightness: 0.85 + 0.06 * (i % 6) });
  return round % 2 === 0 ? turned.flop() : turned;
}
