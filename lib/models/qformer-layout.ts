// Which row of a packed Q-Former batch is which. Every sequence is its queries followed by its text; the two kinds are
// taken apart for what they do not share (cross-attention, feed-forward) and joined again for what they do.
// Where only one kind exists, apart and joined are the same rows and nothing is copied.

import { cuSeqlens } from '../nn/sequences.js';
import { ops, Tensor } from '../tensor/index.js';

/** Index tensors of one packed batch; they belong to the scope in which the layout was made. */
export class QFormerLayout {
  /** number of sequences */
  readonly batch: number;
  /** [batch + 1] i32: all rows of each sequence */
  readonly rows: Tensor;
  readonly #query: Tensor | undefined;
  readonly #text: Tensor | undefined;
  readonly #total: number;

  constructor(
    textLengths: readonly number[],
    readonly numQuery: number,
    readonly device: string,
  ) {
    this.batch = textLengths.length;
    const lengths = textLengths.map((length) => numQuery + length);
    this.rows = cuSeqlens(lengths, device);
    const query: number[] = [];
    const text: number[] = [];
    let row = 0;
    for (const length of lengths) {
      for (let i = 0; i < length; i++) (i < numQuery ? query : text).push(row++);
    }
    this.#total = row;
    this.#query = query.length > 0 ? this.#indices(query) : undefined;
    this.#text = text.length > 0 ? this.#indices(text) : undefined;
  }

  /** Whether no sequence has text. */
  get isQueriesOnly(): boolean {
    return this.#text === undefined;
  }

  /** The query rows of x: [rows, dim] → [batch · num_query, dim]; undefined without queries. */
  queriesOf(x: Tensor): Tensor | undefined {
    return this.#text === undefined ? x : this.#query && ops.gatherRows(x, this.#query);
  }

  /** The text rows of x: [rows, dim] → [text tokens, dim]; undefined without text. */
  textOf(x: Tensor): Tensor | undefined {
    return this.#query === undefined ? x : this.#text && ops.gatherRows(x, this.#text);
  }

  /** The inverse of taking apart: [batch · num_query, dim] and [text tokens, dim] → [rows, dim]. */
  join(queries: Tensor | undefined, text: Tensor | undefined): Tensor {
    if (this.#text === undefined) return queries!;
    if (this.#query === undefined) return text!;
    const joined = Tensor.empty([this.#total, text!.shape[1]!], { device: this.device, dtype: text!.dtype });
    ops.scatterRows(joined, this.#query, queries!);
    ops.scatterRows(joined, this.#text, text!);
    return joined;
  }

  /** Row numbers that repeat one sequence's queries for the whole batch: [batch · num_query] i32. */
  repeatedQueries(): Tensor {
    return this.#indices(Array.from({ length: this.batch * this.numQuery }, (_, i) => i % this.numQuery));
  }

  #indices(rows: number[]): Tensor {
    return Tensor.fromArray(Int32Array.from(rows), [rows.length], { device: this.device });
  }
}
