// What a SentencePiece model file says: pieces with scores, the kind of model, the normaliser's table. A protobuf message of
// which a few fields are read (sentencepiece_model.proto); the file is untrusted, so lengths and counts are bounded.

import { QFormerError } from '../errors.js';
import { readWholeFile } from './files.js';

/** Kinds of pieces, by their number in the file. */
export const PIECE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** One entry of the vocabulary; its id is its place. */
export interface Piece {
  text: string;
  score: number;
  /** One of PIECE. */
  type: number;
}

/** The parts of a model that tokenizing needs. */
export interface SentencePieceModel {
  kind: 'unigram' | 'bpe';
  pieces: Piece[];
  unknownId: number;
  byteFallback: boolean;
  /** Compiled normalisation table, empty for none. */
  charsmap: Uint8Array;
}

const MAX_BYTES = 64 * 2 ** 20;
const MAX_PIECES = 2 ** 20;
const MAX_PIECE_BYTES = 2 ** 12;

/** The model in `file`. Throws IO, FORMAT and UNSUPPORTED (neither unigram nor BPE). */
export function readSentencePiece(file: string): SentencePieceModel {
  const bytes = readWholeFile(file, MAX_BYTES);
  const model: SentencePieceModel = {
    kind: 'unigram',
    pieces: [],
    unknownId: 0,
    byteFallback: false,
    charsmap: new Uint8Array(0),
  };
  for (const { field, value } of new Message(bytes, file)) {
    if (field === 1) model.pieces.push(readPiece(new Message(asBytes(value, file), file), file));
    if (field === 2) readTrainer(new Message(asBytes(value, file), file), model, file);
    if (field === 3) readNormalizer(new Message(asBytes(value, file), file), model, file);
    if (model.pieces.length > MAX_PIECES) throw fault(file, `more than ${MAX_PIECES} pieces`);
  }
  if (model.pieces.length === 0) throw fault(file, 'no pieces');
  if (model.pieces[model.unknownId]?.type !== PIECE.unknown) throw fault(file, 'no unknown piece');
  return model;
}

function readPiece(message: Message, file: string): Piece {
  const piece: Piece = { text: '', score: 0, type: PIECE.normal };
  for (const { field, value } of message) {
    if (field === 1) piece.text = text(asBytes(value, file), file);
    if (field === 2) piece.score = asFloat(value, file);
    if (field === 3) piece.type = asInteger(value, file);
  }
  return piece;
}

function readTrainer(message: Message, model: SentencePieceModel, file: string): void {
  for (const { field, value } of message) {
    if (field === 3) model.kind = kindOf(asInteger(value, file), file);
    if (field === 35) model.byteFallback = asInteger(value, file) !== 0;
    if (field === 40) model.unknownId = asInteger(value, file);
  }
}

function readNormalizer(message: Message, model: SentencePieceModel, file: string): void {
  for (const { field, value } of message) if (field === 2) model.charsmap = asBytes(value, file);
}

function kindOf(number: number, file: string): SentencePieceModel['kind'] {
  if (number === 1) return 'unigram';
  if (number === 2) return 'bpe';
  const message = `${file}: a SentencePiece model of kind ${number}, known are 1 (unigram) and 2 (BPE)`;
  throw new QFormerError('UNSUPPORTED', message, { file });
}

/** A number of 64 bits at most, a float of 32 bits as its bytes, or bytes. */
type Value = number | Uint8Array | { float: number };

/** The fields of a protobuf message, in the order of the file. */
class Message {
  readonly #view: DataView;
  #at = 0;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly file: string,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  *[Symbol.iterator](): Generator<{ field: number; value: Value }> {
    while (this.#at < this.bytes.length) {
      const key = this.#varint();
      yield { field: Math.floor(key / 8), value: this.#value(key % 8) };
    }
  }

  #value(wireType: number): Value {
    switch (wireType) {
      case 0:
        return this.#varint();
      case 1:
        return this.#take(8);
      case 2:
        return this.#take(this.#varint());
      case 5: {
        const at = this.#at;
        this.#take(4);
        return { float: this.#view.getFloat32(at, true) };
      }
      default:
        throw fault(this.file, `wire type ${wireType} at byte ${this.#at}`);
    }
  }

  #take(length: number): Uint8Array {
    if (length < 0 || length > this.bytes.length - this.#at) throw fault(this.file, 'truncated');
    this.#at += length;
    return this.bytes.subarray(this.#at - length, this.#at);
  }

  /** An integer in groups of 7 bits, lowest first, in two's complement of 64 bits. */
  #varint(): number {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const [byte] = this.#take(1) as unknown as [number];
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return Number(BigInt.asIntN(64, value));
    }
    throw fault(this.file, 'an integer of more than ten bytes');
  }
}

function asBytes(value: Value, file: string): Uint8Array {
  if (value instanceof Uint8Array) return value;
  throw fault(file, 'a field has another type than it should');
}

function asInteger(value: Value, file: string): number {
  if (typeof value === 'number') return value;
  throw fault(file, 'a field has another type than it should');
}

function asFloat(value: Value, file: string): number {
  if (typeof value === 'object' && 'float' in value && Number.isFinite(value.float)) return value.float;
  throw fault(file, 'a score is no number');
}

function text(bytes: Uint8Array, file: string): string {
  if (bytes.length > MAX_PIECE_BYTES) throw fault(file, `a piece of ${bytes.length} bytes`);
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw fault(file, 'a piece is not UTF-8');
  }
}

function fault(file: string, message: string): QFormerError {
  return new QFormerError('FORMAT', `${file}: not a SentencePiece model: ${message}`, { file });
}
