// A retrieval model on a data set: every image against all references of the file, and every reference against all images, by
// contrastive similarity.

import { setImmediate } from 'node:timers/promises';
import { mapConcurrently } from '../concurrent.js';
import type { Model } from '../model.js';
import type { RetrievalOptions } from '../options.js';
import { bestCosine, type Embedding } from '../retrieval.js';
import type { EvalItem } from './dataset.js';
import type { EvalEvents } from './evaluate.js';
import { recallAtK } from './recall.js';

/** Recall@K by K, from 0 to 1. */
export type Recalls = Record<(typeof CUTOFFS)[number], number>;

/** What a retrieval model finds. */
export interface RetrievalReport {
  images: number;
  /** Different references. */
  texts: number;
  /** Items whose image cannot be read; they are left out. */
  failed: number;
  imageToText: Recalls;
  textToImage: Recalls;
}

const CUTOFFS = [1, 5, 10] as const;
const AHEAD = 32;

/** Embeds all images and references and ranks them. A text that several images share is right for each of them. */
export async function evaluateRetrieval(
  model: Model,
  items: readonly EvalItem[],
  options: RetrievalOptions,
  { onProgress, onError }: EvalEvents,
): Promise<RetrievalReport> {
  const vectors = new Map<EvalItem, Embedding>();
  let done = 0;
  await mapConcurrently(items, AHEAD, async (item) => {
    try {
      const [vector] = await model.embed({ images: [item.image] }, options);
      vectors.set(item, vector!);
    } catch (error) {
      options.signal?.throwIfAborted();
      onError(error);
    }
    onProgress(++done, items.length);
  });
  const found = items.filter((item) => vectors.has(item));
  const texts = [...new Set(found.flatMap(({ references }) => references))];
  const textVectors = await model.embed({ texts }, options);
  const scores: number[][] = [];
  for (const item of found) {
    scores.push(textVectors.map((text) => bestCosine(vectors.get(item)!, text)));
    await setImmediate();
    options.signal?.throwIfAborted();
  }
  const images = found.map(({ line }) => String(line));
  const imagesOf = (text: string) =>
    found.flatMap(({ references }, i) => (references.includes(text) ? [images[i]!] : []));
  return {
    images: found.length,
    texts: texts.length,
    failed: items.length - found.length,
    imageToText: recalls(
      scores.map((row) => bestOf(texts, (i) => row[i]!)),
      found.map(({ references }) => references),
    ),
    textToImage: recalls(
      texts.map((_, text) => bestOf(images, (i) => scores[i]![text]!)),
      texts.map(imagesOf),
    ),
  };
}

/** The names with the highest scores, best first, as many as the largest cutoff. */
function bestOf(names: readonly string[], scoreOf: (index: number) => number): string[] {
  const order = names.map((_, i) => i).sort((a, b) => scoreOf(b) - scoreOf(a));
  return order.slice(0, Math.max(...CUTOFFS)).map((i) => names[i]!);
}

function recalls(ranked: readonly string[][], relevant: readonly (readonly string[])[]): Recalls {
  return Object.fromEntries(CUTOFFS.map((k) => [k, recallAtK(ranked, relevant, k)])) as Recalls;
}
