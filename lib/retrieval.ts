// Comparing images with texts: what Model.match, similarity, embed and encodeImage do on the main thread. Each image is a task
// of its own, so that one call over many images decodes, encodes and compares at the same time.

import { onAbort } from './abort.js';
import { mapConcurrently } from './concurrent.js';
import { EncodedImage, requestImage, type ModelImage } from './encoded-image.js';
import type { EngineClient, TaskHandle } from './engine/client.js';
import type { Task, TaskResult } from './engine/task.js';
import { QFormerError, describe } from './errors.js';
import type { ImageOptions } from './io/image.js';
import { checkText, type EmbedInput, type EmbedOptions, type RetrievalOptions } from './options.js';

/** How well a text describes an image, by the matching head. */
export interface Match {
  /** Of a match, from 0 to 1. */
  probability: number;
  /** What the probability is the softmax of: no match, match. */
  logits: [number, number];
}

/** The vectors of one image or text: `rows` unit vectors of `dim` numbers behind each other. */
export interface Embedding {
  data: Float32Array;
  rows: number;
  dim: number;
}

/** Images in flight at a time. */
const AHEAD = 32;

/** Runs retrieval tasks of one model. */
export class Retrieval {
  readonly #client: EngineClient;
  readonly #imageOptions: ImageOptions;

  constructor(client: EngineClient, imageOptions: ImageOptions) {
    this.#client = client;
    this.#imageOptions = imageOptions;
  }

  async encode(image: ModelImage, options: RetrievalOptions): Promise<EncodedImage> {
    const pixels = await this.#image('encodeImage', image, options);
    // An encoded image would be held twice under one handle.
    if ('held' in pixels) throw new QFormerError('INVALID_ARGUMENT', 'encodeImage: the image is encoded already');
    const result = await this.#run('encodeImage', { kind: 'hold', image: pixels }, options);
    return new EncodedImage(this.#client, (result as { digest: string }).digest);
  }

  async match(image: ModelImage, texts: readonly string[], options: RetrievalOptions): Promise<Match[]> {
    this.#requireHeads('match');
    checkTexts('match', texts);
    const task: Task = { kind: 'match', image: await this.#image('match', image, options), texts: [...texts] };
    const { data, rows } = embedding(await this.#run('match', task, options));
    return Array.from({ length: rows }, (_, i) => {
      const logits: [number, number] = [data[2 * i]!, data[2 * i + 1]!];
      return { probability: 1 / (1 + Math.exp(logits[0] - logits[1])), logits };
    });
  }

  async similarity(
    images: readonly ModelImage[],
    texts: readonly string[],
    options: RetrievalOptions,
  ): Promise<number[][]> {
    const [left, right] = await Promise.all([
      this.embed('similarity', { images }, options),
      this.embed('similarity', { texts }, options),
    ]);
    return left.map((image) => right.map((text) => bestCosine(image, text)));
  }

  async embed(where: string, input: EmbedInput, options: EmbedOptions): Promise<Embedding[]> {
    this.#requireHeads(where);
    const { images, texts } = input;
    if (texts !== undefined) return this.#embedTexts(where, texts, options);
    const { pool = 'none' } = options;
    return mapConcurrently(images!, AHEAD, async (image) => {
      const pixels = await this.#image(where, image, options);
      const vectors = embedding(await this.#run(where, { kind: 'image', image: pixels }, options));
      return pool === 'mean' ? meanOf(vectors) : vectors;
    });
  }

  async #embedTexts(where: string, texts: readonly string[], options: RetrievalOptions): Promise<Embedding[]> {
    if (texts.length === 0) return [];
    checkTexts(where, texts);
    const { data, rows, dim } = embedding(await this.#run(where, { kind: 'text', texts: [...texts] }, options));
    return Array.from({ length: rows }, (_, i) => ({ data: data.slice(i * dim, (i + 1) * dim), rows: 1, dim }));
  }

  #image(where: string, image: ModelImage, { exif, signal }: RetrievalOptions) {
    throwIfAborted(where, signal);
    return requestImage(this.#client, image, { ...this.#imageOptions, exif, signal });
  }

  async #run(where: string, task: Task, { signal }: RetrievalOptions): Promise<TaskResult> {
    throwIfAborted(where, signal);
    const handle = this.#client.run(task);
    return signal === undefined ? handle.done : abortable(where, handle, signal);
  }

  #requireHeads(where: string): void {
    if (this.#client.info.purpose === 'retrieval') return;
    const message = `${where}: this checkpoint cannot compare images with texts: it has no projections and no matching head`;
    throw new QFormerError('UNSUPPORTED', message, { modelType: this.#client.info.modelType });
  }
}

/** Contrastive similarity, from −1 to 1: the largest cosine of one of the image's vectors with the (first) vector of `other`. */
export function bestCosine(image: Embedding, other: Embedding): number {
  return bestRow(image.data, 0, image.rows, other.data, 0, image.dim);
}

/** The largest dot product of `rows` rows of `data`, from element `at` on, with the vector of `other` at `from`. */
export function bestRow(
  data: Float32Array,
  at: number,
  rows: number,
  other: Float32Array,
  from: number,
  dim: number,
): number {
  let best = -Infinity;
  for (let row = at; row < at + rows * dim; row += dim) {
    let sum = 0;
    for (let i = 0; i < dim; i++) sum += data[row + i]! * other[from + i]!;
    if (sum > best) best = sum;
  }
  return best;
}

/** The mean of the rows, scaled to length 1. */
function meanOf({ data, rows, dim }: Embedding): Embedding {
  const mean = new Float64Array(dim);
  data.forEach((value, i) => (mean[i % dim]! += value / rows));
  const length = Math.hypot(...mean);
  return { data: Float32Array.from(mean, (value) => value / length), rows: 1, dim };
}

function embedding(result: TaskResult): Embedding {
  if ('digest' in result) throw new QFormerError('INTERNAL', 'the engine worker answered another task');
  return { data: result.values, rows: result.rows, dim: result.columns };
}

async function abortable(where: string, handle: TaskHandle, signal: AbortSignal): Promise<TaskResult> {
  const forget = onAbort(signal, () => handle.abort());
  try {
    return await handle.done;
  } catch (error) {
    throwIfAborted(where, signal);
    throw error;
  } finally {
    forget();
  }
}

function throwIfAborted(where: string, signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new QFormerError('ABORTED', `${where}: the request was aborted`, {}, { cause: signal.reason });
}

function checkTexts(where: string, texts: unknown): void {
  if (!Array.isArray(texts) || texts.length === 0) {
    throw new QFormerError('INVALID_ARGUMENT', `${where}: the texts must be a non-empty array, got ${describe(texts)}`);
  }
  for (const text of texts) checkText(where, 'a text', text);
}
