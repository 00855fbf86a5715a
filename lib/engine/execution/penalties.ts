// What a sequence's rules do to its scores, as one op over the batch.

import { Tensor, ops } from '../../tensor/index.js';
import type { Sequence } from '../scheduling/sequence.js';

/** Lists as views of one tensor each, so that they reach the device in one copy. Parts are aligned to 16 elements. */
export function together(
  lists: readonly ArrayLike<number>[],
  array: typeof Int32Array | typeof Float32Array,
  device: string,
) {
  const starts: number[] = [];
  let end = 0;
  for (const { length } of lists) {
    starts.push(end);
    end += Math.ceil(length / 16) * 16;
  }
  const packed = new array(end);
  lists.forEach((list, i) => packed.set(list, starts[i]));
  const tensor = Tensor.fromArray(packed, [end], { device });
  return lists.map(({ length }, i) => tensor.slice(0, starts[i]!, starts[i]! + length));
}

/** Repetition penalty, then −∞ for what a sequence must not produce, in place. scores: [b, vocab] f32, logits or log-probabilities. */
export function penalize(scores: Tensor, sequences: readonly Sequence[], device: string): void {
  const history = new Ragged();
  const banned = new Ragged();
  for (const { rules, params } of sequences) {
    history.push(params.repetitionPenalty === 1 ? [] : rules.history);
    banned.push(rules.alwaysBanned, rules.banned());
  }
  if (history.length + banned.length === 0) return;
  const lists = [history.values(), history.offsets, banned.values(), banned.offsets];
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
  readonly #parts: ArrayLike<number>[] = [];

  get length(): number {
    return this.offsets[this.offsets.length - 1]!;
  }

  /** A row. */
  push(...parts: ArrayLike<number>[]): void {
    this.#parts.push(...parts);
    this.offsets.push(parts.reduce((end, { length }) => end + length, this.length));
  }

  values(): Int32Array {
    const values = new Int32Array(this.length);
    let at = 0;
    for (const part of this.#parts) {
      values.set(part, at);
      at += part.length;
    }
    return values;
  }
}
