// `qformer index` and `qformer search`: a file of image vectors, and what fits a query among them.

import { statSync } from 'node:fs';
import { mapConcurrently } from '../concurrent.js';
import { ImageIndex, type SearchResult } from '../image-index.js';
import type { CommonFlags } from './flags.js';
import { bytes, duration, fail } from './output.js';
import { progressBar } from './progress.js';
import { withModel } from './session.js';

/** Images decoded or waiting at a time. */
const AHEAD = 32;

/** Writes the index of `images`; one that fails is reported and left out. */
export function index(images: string[], flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal) => {
    const result = new ImageIndex(model);
    const began = performance.now();
    const bar = await progressBar('indexing');
    let done = 0;
    try {
      await mapConcurrently(images, AHEAD, async (image) => {
        signal.throwIfAborted();
        await result.add(image, image, { signal }).catch(fail);
        bar.update(++done, images.length, `of ${images.length} images`);
      });
    } finally {
      bar.stop();
    }
    signal.throwIfAborted();
    if (result.size === 0) return;
    const ms = performance.now() - began;
    const output = flags.output!;
    await result.save(output);
    const { size } = statSync(output);
    const perSecond = Math.round((result.size / ms) * 10_000) / 10;
    const figures = { index: output, images: result.size, ms: Math.round(ms), imagesPerSecond: perSecond, bytes: size };
    const text = `${output}: ${result.size} images in ${duration(ms)} (${perSecond} images/s), ${bytes(size)}`;
    process.stdout.write(`${flags.json ? JSON.stringify(figures) : text}\n`);
  });
}

/** Prints the images of the index in `file` that fit `query` best. */
export function search(file: string, query: string, flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal) => {
    const { top, image, rerank: wanted } = flags;
    const rerank = wanted === true ? top : wanted;
    const collection = ImageIndex.load(file, model);
    const began = performance.now();
    const results = await collection.search(image ? { image: query } : query, { top, rerank, signal });
    const ms = Math.round((performance.now() - began) * 10) / 10;
    const about = { query, images: collection.size, ms, results };
    process.stdout.write(flags.json ? `${JSON.stringify(about)}\n` : results.map(line).join(''));
  });
}

function line({ id, score, probability }: SearchResult, at: number): string {
  const matching = probability === undefined ? '' : `  ${probability.toFixed(4)}`;
  return `${String(at + 1).padStart(3)}  ${score.toFixed(4)}${matching}  ${id}\n`;
}
