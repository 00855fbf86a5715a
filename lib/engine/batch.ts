// The integer tensors of one step, as plain arrays: which tokens, where they stand, where their keys and values go.
// Pure arithmetic on block tables; the runner uploads the result.

import type { ScheduledSequence } from './scheduler.js';

/** The arrays of BatchInputs and the token ids, for t tokens of b sequences. */
export interface BatchArrays {
  /** [t]; image placeholders without an id of their own are 0, their rows are overwritten */
  ids: Int32Array;
  positions: Int32Array;
  slotMapping: Int32Array;
  /** [b + 1] */
  cuSeqlensQ: Int32Array;
  /** [b, width], padded with 0 */
  blockTable: Int32Array;
  /** [b] */
  contextLens: Int32Array;
  /** Columns of blockTable. */
  width: number;
  /** Row of the last token of each sequence that samples, in batch order. */
  lastRows: Int32Array;
}

/** Lays out a step. `width` pads the block table to a fixed number of columns; by default the longest one decides. */
export function layOutBatch(batch: readonly ScheduledSequence[], blockSize: number, width?: number): BatchArrays {
  const tokens = batch.reduce((sum, { count }) => sum + count, 0);
  const columns = width ?? Math.max(1, ...batch.map(({ sequence }) => sequence.blockTable.length));
  const arrays: BatchArrays = {
    ids: new Int32Array(tokens),
    positions: new Int32Array(tokens),
    slotMapping: new Int32Array(tokens),
    cuSeqlensQ: new Int32Array(batch.length + 1),
    blockTable: new Int32Array(batch.length * columns),
    contextLens: new Int32Array(batch.length),
    width: columns,
    lastRows: new Int32Array(batch.filter(({ sample }) => sample).length),
  };
  let row = 0;
  let sampled = 0;
  batch.forEach(({ sequence, start, count, sample }, b) => {
    const { tokens: ids, blockTable } = sequence;
    for (let position = start; position < start + count; position++, row++) {
      arrays.ids[row] = Math.max(0, ids[position]!);
      arrays.positions[row] = position;
      const block = blockTable[Math.floor(position / blockSize)]!;
      arrays.slotMapping[row] = block * blockSize + (position % blockSize);
    }
    arrays.cuSeqlensQ[b + 1] = row;
    arrays.contextLens[b] = start + count;
    const used = Math.ceil((start + count) / blockSize);
    for (let i = 0; i < used; i++) arrays.blockTable[b * columns + i] = blockTable[i]!;
    if (sample) arrays.lastRows[sampled++] = row - 1;
  });
  return arrays;
}
