// The encoder's part of a step: the inputs of all sequences that have not been encoded yet, packed, each whole. One pass over
// them; what it writes to the cache is read by the decoder's cross-attention from the same step on.

import type { KvCache, LanguageModel } from '../../models/model.js';
import { cuSeqlens } from '../../nn/sequences.js';
import { Tensor, ops } from '../../tensor/index.js';
import type { EncoderInput } from '../scheduling/encoder-input.js';

/** Rows that replace embeddings, and where. */
export interface PlacedRows {
  /** Positions in their sequence, ascending. */
  positions: readonly number[];
  /** [positions.length, hidden] */
  rows: Tensor;
}

/** One input to encode and its image rows. */
export interface EncoderItem {
  input: EncoderInput;
  images: readonly PlacedRows[];
}

/** Encodes all `items` at once. Call it inside a scope; marking them computed is the engine's affair. */
export function encodeInputs(
  model: LanguageModel,
  items: readonly EncoderItem[],
  kvCache: KvCache,
  device: string,
): void {
  const lengths = items.map(({ input }) => input.tokens.length);
  const { blockSize } = kvCache;
  const i32 = (values: readonly number[]): Tensor =>
    Tensor.fromArray(Int32Array.from(values), [values.length], { device });
  // A placeholder without an id of its own is -1; its row is overwritten.
  const ids = items.flatMap(({ input }) => input.tokens.map((id) => Math.max(0, id)));
  const slots = items.flatMap(({ input: { tokens, blockTable } }) =>
    tokens.map((_, i) => blockTable[Math.floor(i / blockSize)]! * blockSize + (i % blockSize)),
  );
  const embeds = model.embed(i32(ids));
  let first = 0;
  items.forEach(({ images }, i) => {
    for (const { positions, rows } of images) {
      ops.scatterRows(embeds, i32(positions.map((position) => first + position)), rows);
    }
    first += lengths[i]!;
  });
  model.encode!(embeds, { cuSeqlens: cuSeqlens(lengths, device), slotMapping: i32(slots), kvCache });
}
