// Search in a collection of images: their contrastive vectors in memory, compared one by one (exact, no approximation), the best
// ones optionally put in order by the matching head. The file of an index names the model that made it.

import { setImmediate } from 'node:timers/promises';
import type { ModelImage } from './encoded-image.js';
import { QFormerError } from './errors.js';
import { modelDigest } from './io/model-digest.js';
import { openRetrievalCheckpoint } from './io/retrieval-checkpoint.js';
import { readVectorFile, writeVectorFile } from './io/vector-file.js';
import type { Model } from './model.js';
import { checkSearchOptions, checkText, type RetrievalOptions, type SearchOptions } from './options.js';
import { bestRow, type Embedding } from './retrieval.js';

/** One image found. */
export interface SearchResult {
  id: string;
  /** Contrastive similarity, from −1 to 1. */
  score: number;
  /** Of a match, by the matching head; where it was asked for. */
  probability?: number;
}

/** What to look for: a text, or images like one. */
export type SearchQuery = string | { image: ModelImage };

/** Multiplications between two looks at the event loop. */
const SLICE = 4e6;

/** A collection of images that texts and images are compared with. */
export class ImageIndex {
  readonly #model: Model;
  readonly #vectors = new Map<string, Float32Array>();

  /** An empty index for a retrieval model. Throws UNSUPPORTED for any other model. */
  constructor(model: Model) {
    this.#model = model;
    if (model.info.purpose === 'retrieval') return;
    const message = 'ImageIndex: this checkpoint cannot compare images with texts';
    throw new QFormerError('UNSUPPORTED', message, { modelType: model.info.modelType });
  }

  /**
   * Reads an index that `model` made. Throws IO, FORMAT (no index, or damaged), UNSUPPORTED (another version of the format) and
   * INVALID_ARGUMENT (made by another model: vectors of two models cannot be compared).
   */
  static load(file: string, model: Model): ImageIndex {
    const index = new ImageIndex(model);
    const { model: digest, ids, vectors, rows, dim } = readVectorFile(file);
    const expected = index.#digest();
    if (digest !== expected || rows !== index.#rows || dim !== index.#dim) {
      const message = `${file}: the index was made by another model than ${model.info.dir}`;
      throw new QFormerError('INVALID_ARGUMENT', message, { file, found: digest, expected });
    }
    ids.forEach((id, i) => index.#vectors.set(id, vectors[i]!));
    return index;
  }

  /** Number of images. */
  get size(): number {
    return this.#vectors.size;
  }

  /** The images' ids, in the order in which they were added. */
  get ids(): string[] {
    return [...this.#vectors.keys()];
  }

  /** Adds an image, or replaces the one of that id. Errors as `Model.embed`. */
  async add(id: string, image: ModelImage, options: RetrievalOptions = {}): Promise<void> {
    checkText('ImageIndex.add', 'the id', id);
    const [embedding] = await this.#model.embed({ images: [image] }, options);
    this.#vectors.set(id, embedding!.data);
  }

  /** Removes an image; false where there is none of that id. */
  delete(id: string): boolean {
    return this.#vectors.delete(id);
  }

  /**
   * The images that fit best, best first. An image as query is compared by each of its vectors, and the mean counts, so that an
   * image is most similar to itself. Errors as `Model.embed` and `Model.match`.
   */
  async search(query: SearchQuery, options: SearchOptions = {}): Promise<SearchResult[]> {
    checkSearchOptions(options);
    const { top = 10, rerank = 0, imageOf = (id: string): ModelImage => id, signal } = options;
    if (rerank > 0 && typeof query !== 'string') {
      throw new QFormerError('INVALID_ARGUMENT', 'search: only a text can be matched with images, leave out `rerank`');
    }
    const input = typeof query === 'string' ? { texts: [query] } : { images: [query.image] };
    const [wanted] = await this.#model.embed(input, { signal });
    const ranked = (await this.#compare(wanted!, signal)).sort((a, b) => b.score - a.score);
    const best = await Promise.all(
      ranked.slice(0, rerank).map(async ({ id, score }) => {
        const { probability } = await this.#model.match(imageOf(id), query as string, { signal });
        return { id, score, probability };
      }),
    );
    return [...best.sort((a, b) => b.probability - a.probability), ...ranked.slice(rerank)].slice(0, top);
  }

  /** Writes the index to a file. Rejects with IO. */
  async save(file: string): Promise<void> {
    const vectors = [...this.#vectors.values()];
    const { ids } = this;
    await writeVectorFile(file, { model: this.#digest(), ids, vectors, rows: this.#rows, dim: this.#dim });
  }

  async #compare(query: Embedding, signal: AbortSignal | undefined): Promise<SearchResult[]> {
    const [rows, dim] = [this.#rows, this.#dim];
    const cost = query.rows * rows * dim;
    const results: SearchResult[] = [];
    for (const [id, vectors] of this.#vectors) {
      let sum = 0;
      for (let row = 0; row < query.rows; row++) sum += bestRow(vectors, 0, rows, query.data, row * dim, dim);
      results.push({ id, score: sum / query.rows });
      if ((results.length * cost) % SLICE >= cost) continue;
      await setImmediate();
      if (signal?.aborted)
        throw new QFormerError('ABORTED', 'search: the request was aborted', {}, { cause: signal.reason });
    }
    return results;
  }

  #digest(): string {
    const { dir } = this.#model.info;
    return modelDigest(dir, openRetrievalCheckpoint(dir).tensors);
  }

  get #rows(): number {
    return this.#model.info.config.numQueryTokens;
  }

  get #dim(): number {
    const { config } = this.#model.info;
    return 'projectionSize' in config ? config.projectionSize : 0;
  }
}
