// What a sequence's rules do to its scores, as one op over the batch.

import { Tensor, ops } from '../../tensor/index.js';
import type { Sequence } from '../scheduling/sequence.js';

/** Where lists wait for their copy to the device, used at every step: fresh memory would be a page fault each 4 KiB. */
let staging = new ArrayBuffer(0);

function stage(bytes: number): ArrayBuffer {
  if (staging.byteLength < bytes) staging = new ArrayBuffer(2 * bytes);
  return staging;
}

/** Lists as views of one tensor each, so that they reach the device in one copy. Parts are aligned to 16 elements. */
export function together(
  lists: readonly (ArrayLike<number> | Ragged)[],
  array: typeof Int32Array | typeof Float32Array,
  device: string,
) {
  const starts: number[] = [];
  let end = 0;
  for (const { length } of lists) {
    starts.push(end);
    end += Math.ceil(length / 16) * 16;
  }
  const packed = new array(stage(4 * end), 0, end);
  lists.forEach((list, i) => {
    const parts = list instanceof Ragged ? list.parts : [list];
    let at = starts[i]!;
    for (const part of parts) {
      packed.set(part, at);
      at += part.length;
    }
  });
  const tensor = Tensor.fromArray(packed, [end], { device });
  return lists.map(({ length }, i) => tensor.slice(0, starts[i]!, starts[i]! + length));
}

/** Repetition penalty, then −∞ for what a sequence must not produce, in place. scores: [b, vocab] f32, logits or log-probabilities. */
export function penalize(scores: Tensor, sequences: readonly Sequence[], device: string): void {
  const history = new Ragged();
  const banned = new Ragged();
  for (const { rules, params } of sequences) {
    history.push(params.repetitionPenalty === 1 ? [] : rules.history);
    banned.push(...rules.alwaysBanned, rules.banned());
  }
  if (history.length + banned.length === 0) return;
  const lists = [history, history.offsets, banned, banned.offsets];
  const [ids, cuHistory, bannedIds, cuBanned] = together(lists, Int32Array, device) as [Tensor, Tensor, Tensor, Tensor];
  const [repetitionPenalty] = together(
    [sequences.map(({ params }) => params.repetitionPenalty)],
    Float32Array,
    device,
  ) as [Tensor];
  ops.penalizeLogits(scores, { history: ids, cuHistory, banned: bannedIds, cuBanned, repetitionPenalty });
}

/** Rows of ids of different length behind each other. */
class Ragged {
  readonly offsets: number[] = [0];
  readonly parts: ArrayLike<number>[] = [];

  get length(): number {
    return this.offsets[this.offsets.length - 1]!;
  }

  /** A row. */
  push(...parts: ArrayLike<number>[]): void {
    this.parts.push(...parts);
    this.offsets.push(parts.reduce((end, { length }) => end + length, this.length));
  }
}
