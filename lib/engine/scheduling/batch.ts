// The integer tensors of one step, as plain arrays: which tokens, where they stand, where their keys and values go.
// Pure arithmetic on block tables. All arrays are parts of one buffer, so that a step's integers reach the device in one copy.

import type { EncoderInput } from './encoder-input.js';
import type { ScheduledSequence } from './scheduler.js';

/** The arrays of BatchInputs and the token ids, for t tokens of b sequences. */
export interface BatchArrays {
  /** The buffer that the other arrays are parts of; each begins at a multiple of PART_ALIGNMENT. */
  packed: Int32Array;
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
  /** Rows whose logits are wanted, in batch order: the last one of a sequence that samples. */
  logitRows: Int32Array;
  /** Of CrossInputs; empty unless the sequences have encoder inputs. */
  cross: CrossArrays;
}

/** What each new token sees of its encoder: the arrays of CrossInputs. */
export interface CrossArrays {
  /** [t + 1] */
  cuSeqlensQ: Int32Array;
  /** [t, width], padded with 0 */
  blockTable: Int32Array;
  /** [t] */
  contextLens: Int32Array;
  width: number;
}

type Part = Int32Array;
type PackedParts = [Part, Part, Part, Part, Part, Part, Part, Part, Part, Part];

/** Elements; kernels read aligned vectors of 16 bytes, and a part of its own cache line disturbs no other. */
const PART_ALIGNMENT = 16;

function packedArrays(sizes: readonly number[]): [packed: Int32Array, parts: Int32Array[]] {
  const starts: number[] = [];
  let end = 0;
  for (const size of sizes) {
    starts.push(end);
    end += Math.ceil(size / PART_ALIGNMENT) * PART_ALIGNMENT;
  }
  const packed = new Int32Array(end);
  return [packed, sizes.map((size, i) => packed.subarray(starts[i], starts[i]! + size))];
}

/** Lays out a step. `width` pads the block table to a fixed number of columns; by default the longest one decides. */
export function layOutBatch(batch: readonly ScheduledSequence[], blockSize: number, width?: number): BatchArrays {
  const tokens = batch.reduce((sum, { count }) => sum + count, 0);
  const columns = width ?? Math.max(1, ...batch.map(({ sequence }) => sequence.blockTable.length));
  const wanted = batch.map(({ sequence, start, count }) => sequence.logitPositions(start, start + count));
  const logits = wanted.reduce((sum, { from, to }) => sum + Math.max(0, to - from), 0);
  const encoderBlocks = batch.map(({ sequence }) => sequence.encoder?.blockTable.length ?? 0);
  const crossRows = batch.some(({ sequence }) => sequence.encoder) ? tokens : 0;
  const crossWidth = crossRows === 0 ? 0 : (width ?? Math.max(...encoderBlocks));
  const [packed, parts] = packedArrays([
    ...[tokens, tokens, tokens, batch.length + 1, batch.length * columns, batch.length, logits],
    ...[crossRows === 0 ? 0 : crossRows + 1, crossRows * crossWidth, crossRows],
  ]);
  const [ids, positions, slotMapping, cuSeqlensQ, blockTable, contextLens, logitRows, ...cross] = parts as PackedParts;
  const arrays: BatchArrays = {
    packed,
    ids,
    positions,
    slotMapping,
    cuSeqlensQ,
    blockTable,
    contextLens,
    width: columns,
    logitRows,
    cross: { cuSeqlensQ: cross[0], blockTable: cross[1], contextLens: cross[2], width: crossWidth },
  };
  let row = 0;
  let logitRow = 0;
  batch.forEach(({ sequence, start, count }, b) => {
    const { tokens: ids, blockTable, encoder } = sequence;
    for (let position = start; position < start + count; position++, row++) {
      arrays.ids[row] = Math.max(0, ids[position]!);
      arrays.positions[row] = position;
      const block = blockTable[Math.floor(position / blockSize)]!;
      arrays.slotMapping[row] = block * blockSize + (position % blockSize);
      if (encoder !== undefined) setCrossRow(arrays.cross, row, encoder);
    }
    arrays.cuSeqlensQ[b + 1] = row;
    arrays.contextLens[b] = start + count;
    const used = Math.ceil((start + count) / blockSize);
    for (let i = 0; i < used; i++) arrays.blockTable[b * columns + i] = blockTable[i]!;
    const { from, to } = wanted[b]!;
    for (let position = from; position < to; position++) logitRows[logitRow++] = row - (start + count) + position;
  });
  return arrays;
}

function setCrossRow(cross: CrossArrays, row: number, { tokens, blockTable }: EncoderInput): void {
  cross.cuSeqlensQ[row + 1] = row + 1;
  cross.contextLens[row] = tokens.length;
  blockTable.forEach((block, i) => (cross.blockTable[row * cross.width + i] = block));
}
