// What the worker does besides generating text, as messages: keeping the features of an image, vectors for contrastive
// comparison, matching. One task is one message each way; tasks of one kind that wait together are computed together.

import type { RequestImage } from './protocol.js';

/** An image whose features the worker holds, by its digest. */
export interface HeldImage {
  held: string;
}

/** Pixels, or a held image. */
export type TaskImage = RequestImage | HeldImage;

/** Something to compute. */
export type Task =
  /** Run the vision tower and keep its features until they are released as often as they were held. */
  | { kind: 'hold'; image: RequestImage }
  /** The image's vectors for contrastive comparison, one per query token. */
  | { kind: 'image'; image: TaskImage }
  /** The texts' vectors for contrastive comparison. */
  | { kind: 'text'; texts: string[] }
  /** Matching scores of one image with each text. */
  | { kind: 'match'; image: TaskImage; texts: string[] };

/** `digest` of a held image; else [rows, columns] f32: unit vectors, or (no match, match) logits of each text. */
export type TaskResult = { digest: string } | { values: Float32Array; rows: number; columns: number };
