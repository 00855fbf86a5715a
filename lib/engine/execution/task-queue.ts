// Tasks of the worker in the order of their arrival. A step takes one batch: the oldest task's pieces, and those of later tasks
// of its kind while there is room. The bits of a piece do not depend on its batch, so neither do a task's results.

import { QFormerError } from '../../errors.js';
import type { RetrievalModel, TextIds } from '../../models/retrieval.js';
import { scope, type Tensor } from '../../tensor/index.js';
import { readPixels, type ImageFeatures } from './image-features.js';
import type { SequenceImage } from '../scheduling/sequence.js';
import type { Task, TaskResult } from '../task.js';

/** Pieces of one batch: the vision tower fills the machine with few images, the Q-Former needs more rows. */
const BATCH = { hold: 1, image: 8, text: 32, match: 16 } as const;

/** What tasks need; a generation model can only hold images. */
export interface TaskModel {
  features: ImageFeatures | undefined;
  retrieval?: { model: RetrievalModel; tokenize: (text: string) => TextIds };
}

/** What happened to a task. */
export type TaskEvent =
  { type: 'done'; id: number; result: TaskResult } | { type: 'error'; id: number; error: unknown };

interface Job {
  id: number;
  kind: Task['kind'];
  image: SequenceImage | undefined;
  texts: readonly TextIds[];
  /** Values of the finished pieces. */
  values: Float32Array[];
  pieces: number;
}

/** One piece of a job: its image, a text of it, or both. */
interface Piece {
  job: Job;
  text: TextIds | undefined;
}

/** Runs tasks. */
export class TaskQueue {
  readonly #jobs: Job[] = [];

  constructor(private readonly model: TaskModel) {}

  get hasWork(): boolean {
    return this.#jobs.length > 0;
  }

  /** Throws INVALID_ARGUMENT (pixels, texts) and UNSUPPORTED (the checkpoint has no such head). */
  add(id: number, task: Task): void {
    const { features, retrieval } = this.model;
    if (task.kind !== 'hold' && retrieval === undefined) throw cannot('compare images with texts');
    if (features === undefined) throw cannot('read images');
    const image = 'image' in task ? readPixels(task.image) : undefined;
    const texts = 'texts' in task ? task.texts.map((text) => retrieval!.tokenize(text)) : [];
    const pieces = 'texts' in task ? texts.length : 1;
    if (pieces === 0) throw new QFormerError('INVALID_ARGUMENT', 'there are no texts');
    // A held image may be released while the task waits.
    if (image !== undefined && task.kind !== 'hold' && image.data.length === 0) features.hold(image);
    this.#jobs.push({ id, kind: task.kind, image, texts, values: [], pieces });
  }

  /** Forgets a task; its event is an ABORTED error. Undefined where it has ended. */
  abort(id: number): TaskEvent | undefined {
    const job = this.#jobs.find((other) => other.id === id);
    if (job === undefined) return undefined;
    this.#end(job);
    return { type: 'error', id, error: new QFormerError('ABORTED', 'the request was aborted') };
  }

  /** Runs one batch. */
  step(): TaskEvent[] {
    const batch = this.#nextBatch();
    const jobs = [...new Set(batch.map(({ job }) => job))];
    try {
      this.#run(batch);
    } catch (error) {
      for (const job of jobs) this.#end(job);
      return jobs.map(({ id }) => ({ type: 'error', id, error }));
    }
    const finished = jobs.filter(({ values, pieces }) => values.length === pieces);
    for (const job of finished) this.#end(job);
    return finished.map((job) => ({ type: 'done', id: job.id, result: this.#resultOf(job) }));
  }

  #nextBatch(): Piece[] {
    const { kind } = this.#jobs[0]!;
    const batch: Piece[] = [];
    for (const job of this.#jobs) {
      if (job.kind !== kind) continue;
      for (let i = job.values.length; i < job.pieces && batch.length < BATCH[kind]; i++) {
        batch.push({ job, text: job.texts[i] });
      }
    }
    return batch;
  }

  #run(batch: readonly Piece[]): void {
    const [{ job: first }] = batch as [Piece];
    if (first.kind === 'hold') {
      this.model.features!.hold(first.image!);
      first.values.push(new Float32Array(0));
      return;
    }
    const values = scope(() => this.#forward(first.kind, batch).toFloat32());
    const length = values.length / batch.length;
    batch.forEach(({ job }, i) => job.values.push(values.slice(i * length, (i + 1) * length)));
  }

  #forward(kind: Task['kind'], batch: readonly Piece[]): Tensor {
    const { features, retrieval } = this.model;
    const { model } = retrieval!;
    const texts = batch.map(({ text }) => text!);
    if (kind === 'text') return model.textVectors(texts);
    if (kind === 'image') return model.imageVectors(features!.ofAll(batch.map(({ job }) => job.image!)), batch.length);
    const images = new Map(batch.map(({ job: { image } }) => [image!.digest, image!]));
    const order = [...images.keys()];
    return model.matchScores(
      features!.ofAll([...images.values()]),
      batch.map(({ job }) => order.indexOf(job.image!.digest)),
      texts,
    );
  }

  #resultOf({ kind, image, values, pieces }: Job): TaskResult {
    if (kind === 'hold') return { digest: image!.digest };
    const { numQueryTokens, projectionSize } = this.model.retrieval!.model.config;
    const rows = kind === 'image' ? numQueryTokens : pieces;
    const parts = kind === 'match' ? values.map(meanOfRows) : values;
    return { values: concatenate(parts), rows, columns: kind === 'match' ? 2 : projectionSize };
  }

  #end(job: Job): void {
    this.#jobs.splice(this.#jobs.indexOf(job), 1);
    if (job.image !== undefined && job.kind !== 'hold' && job.image.data.length === 0) {
      this.model.features!.release(job.image.digest);
    }
  }
}

/** The UNSUPPORTED error of a checkpoint without the weights for something. */
export const cannot = (what: string): QFormerError =>
  new QFormerError('UNSUPPORTED', `this checkpoint cannot ${what}: it has no weights for that`);

/** [rows, 2] → the means over the rows, [2] */
function meanOfRows(scores: Float32Array): Float32Array {
  const mean = [0, 0];
  scores.forEach((score, i) => (mean[i % 2]! += score / (scores.length / 2)));
  return Float32Array.from(mean);
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
  const result = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}
