// The safetensors container: 8 bytes little-endian header length, a JSON header, then the tensors' bytes. Only the header is
// read here; tensors are mapped elsewhere. The header is untrusted: sizes are checked before anything is allocated, and the
// tensors must tile the data section exactly (no overlap, no hole, no trailing byte), as the reference reader demands.
// Format: https://github.com/huggingface/safetensors#format

import { QFormerError, describe } from '../errors.js';
import { isJsonObject, withOpenFile, type JsonObject } from './files.js';

/** Element types that qformer reads. */
export type StoredDtype = 'F64' | 'F32' | 'F16' | 'BF16' | 'I64' | 'I32' | 'I16' | 'I8' | 'U8' | 'BOOL';

/** One tensor of a file: `offset` is in bytes from the beginning of the file, `bytes` its length. */
export interface TensorEntry {
  name: string;
  dtype: StoredDtype;
  shape: number[];
  offset: number;
  bytes: number;
  file: string;
  /** Its axes from the slowest to the fastest in the file, where that is not their own order (PyTorch's files only). */
  order?: number[];
}

/** Largest header that is accepted, in bytes (the reference's limit). */
export const MAX_HEADER_BYTES = 100_000_000;

const LENGTH_BYTES = 8;
/** Bytes of one element. */
export const ELEMENT_BYTES: ReadonlyMap<string, number> = new Map<StoredDtype, number>([
  ['F64', 8],
  ['F32', 4],
  ['F16', 2],
  ['BF16', 2],
  ['I64', 8],
  ['I32', 4],
  ['I16', 2],
  ['I8', 1],
  ['U8', 1],
  ['BOOL', 1],
]);
const OTHER_DTYPES = new Set(
  'U16 U32 U64 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ F6_E2M3 F6_E3M2 F4 C64'.split(' '),
);
// header → entry → list of numbers
const MAX_DEPTH = 3;
const MAX_RANK = 8;
// long enough for any real tensor name, short enough for a message
const MAX_NAME_SHOWN = 160;

/** The tensors of a safetensors file, in file order, reading no more than its header. Throws IO and FORMAT. */
export function readSafetensorsHeader(file: string): Map<string, TensorEntry> {
  return withOpenFile(file, (read, size) => {
    const length = headerLength(size < LENGTH_BYTES ? new Uint8Array(0) : read(0, LENGTH_BYTES), size, file);
    return parseSafetensorsHeader(read(0, LENGTH_BYTES + length), size, file);
  });
}

/**
 * The tensors described by `prefix`, the first bytes of a file of `fileSize` bytes (at least the whole header).
 * Throws FORMAT for every contradiction, naming `file` and the tensor; UNSUPPORTED for a known dtype that is not read.
 */
export function parseSafetensorsHeader(prefix: Uint8Array, fileSize: number, file: string): Map<string, TensorEntry> {
  const length = headerLength(prefix, fileSize, file);
  const dataStart = LENGTH_BYTES + length;
  if (prefix.length < dataStart) {
    throw fault(file, `the header has ${length} bytes, but only ${prefix.length - LENGTH_BYTES} were given`);
  }
  const header = parseHeader(prefix.subarray(LENGTH_BYTES, dataStart), file);
  const entries: TensorEntry[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') checkMetadata(value, file);
    else entries.push(parseEntry(name, value, dataStart, fileSize, file));
  }
  entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  checkTiling(entries, dataStart, fileSize, file);
  return new Map(entries.map((entry) => [entry.name, entry]));
}

function headerLength(prefix: Uint8Array, fileSize: number, file: string): number {
  if (fileSize < LENGTH_BYTES || prefix.length < LENGTH_BYTES) {
    throw fault(file, `not a safetensors file: ${fileSize} bytes, too short for the header length`);
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw fault(file, `header length ${length} is more than the limit of ${MAX_HEADER_BYTES} bytes`);
  }
  if (length > BigInt(fileSize - LENGTH_BYTES)) {
    throw fault(file, `truncated: header length ${length}, but the file has ${fileSize} bytes`);
  }
  if (length < 2n) throw fault(file, `header length ${length} is too short for a JSON object`);
  return Number(length);
}

function parseHeader(bytes: Uint8Array, file: string): JsonObject {
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    header = JSON.parse(text);
  } catch (error) {
    throw fault(file, `the header is not UTF-8 JSON (${(error as Error).message})`);
  }
  if (!isJsonObject(header) || text[0] !== '{')
    throw fault(file, `the header must be a JSON object, got ${describe(header)}`);
  checkKeys(text, file);
  return header;
}

// JSON.parse keeps the last of two equal keys without a word, so the (already valid) text is scanned for them.
function checkKeys(text: string, file: string): void {
  const scopes: (Set<string> | null)[] = [];
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 0x7b || c === 0x5b) {
      scopes.push(c === 0x7b ? new Set() : null);
      if (scopes.length > MAX_DEPTH) throw fault(file, 'the header is nested too deeply');
    } else if (c === 0x7d || c === 0x5d) {
      scopes.pop();
    } else if (c === 0x22) {
      const end = stringEnd(text, i);
      const keys = scopes.at(-1);
      if (keys && isKey(text, end)) addKey(keys, JSON.parse(text.slice(i, end)) as string, scopes.length, file);
      i = end - 1;
    }
  }
}

function stringEnd(text: string, start: number): number {
  let i = start + 1;
  while (text.charCodeAt(i) !== 0x22) i += text.charCodeAt(i) === 0x5c ? 2 : 1;
  return i + 1;
}

function isKey(text: string, end: number): boolean {
  let i = end;
  while (text.charCodeAt(i) <= 0x20) i++;
  return text.charCodeAt(i) === 0x3a;
}

function addKey(keys: Set<string>, key: string, depth: number, file: string): void {
  if (keys.has(key)) throw fault(file, `${depth === 1 ? 'tensor' : 'key'} ${quote(key)} is named twice`);
  keys.add(key);
}

function checkMetadata(value: unknown, file: string): void {
  if (!isJsonObject(value)) throw fault(file, `__metadata__ must be an object, got ${describe(value)}`);
  for (const [key, entry] of Object.entries(value)) {
    if (typeof entry !== 'string') throw fault(file, `__metadata__.${key} must be a string, got ${describe(entry)}`);
  }
}

function parseEntry(name: string, value: unknown, dataStart: number, fileSize: number, file: string): TensorEntry {
  if (!isJsonObject(value)) throw fault(file, `must be an object, got ${describe(value)}`, name);
  for (const key of Object.keys(value)) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets')
      throw fault(file, `unknown key ${describe(key)}`, name);
  }
  const { dtype, shape } = value;
  const elementBytes = dtypeBytes(dtype, file, name);
  if (!Array.isArray(shape)) throw fault(file, `shape must be a list, got ${describe(shape)}`, name);
  if (shape.length > MAX_RANK) throw fault(file, `shape has ${shape.length} dimensions, more than ${MAX_RANK}`, name);
  let expected = elementBytes;
  for (const size of shape) {
    if (!isSize(size)) throw fault(file, `shape has the size ${describe(size)}, expected a whole number`, name);
    expected *= size;
    if (!Number.isSafeInteger(expected)) throw fault(file, `shape [${shape}] is too large`, name);
  }
  const [begin, end] = offsets(value['data_offsets'], fileSize - dataStart, file, name);
  if (end - begin !== expected) {
    throw fault(file, `${dtype} [${shape}] takes ${expected} bytes, but data_offsets span ${end - begin}`, name);
  }
  return {
    name,
    dtype: dtype as StoredDtype,
    shape: shape as number[],
    offset: dataStart + begin,
    bytes: expected,
    file,
  };
}

function dtypeBytes(dtype: unknown, file: string, name: string): number {
  const bytes = ELEMENT_BYTES.get(dtype as string);
  if (bytes !== undefined) return bytes;
  if (typeof dtype === 'string' && OTHER_DTYPES.has(dtype)) {
    throw new QFormerError('UNSUPPORTED', `${file}: tensor ${quote(name)}: dtype ${dtype} is not supported`, {
      file,
      tensor: name,
    });
  }
  throw fault(file, `unknown dtype ${describe(dtype)}`, name);
}

function offsets(value: unknown, dataBytes: number, file: string, name: string): [number, number] {
  if (!Array.isArray(value) || value.length !== 2 || !value.every(isSize)) {
    const shown = Array.isArray(value) && value.length <= 4 ? `[${value.map(describe).join(', ')}]` : describe(value);
    throw fault(file, `data_offsets must be two whole numbers, got ${shown}`, name);
  }
  const [begin, end] = value as [number, number];
  if (begin > end) throw fault(file, `data_offsets [${begin}, ${end}] run backwards`, name);
  if (end > dataBytes) {
    throw fault(file, `data_offsets [${begin}, ${end}] lie beyond the ${dataBytes} data bytes of the file`, name);
  }
  return [begin, end];
}

function checkTiling(sorted: readonly TensorEntry[], dataStart: number, fileSize: number, file: string): void {
  let position = dataStart;
  for (const { name, offset, bytes } of sorted) {
    if (offset < position) throw fault(file, `overlaps the tensor before it by ${position - offset} bytes`, name);
    if (offset > position) throw fault(file, `${offset - position} bytes before it belong to no tensor`, name);
    position += bytes;
  }
  if (position < fileSize) throw fault(file, `${fileSize - position} bytes at the end belong to no tensor`);
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && !Object.is(value, -0);
}

function fault(file: string, message: string, tensor?: string): QFormerError {
  const where = tensor === undefined ? file : `${file}: tensor ${quote(tensor)}`;
  return new QFormerError('FORMAT', `${where}: ${message}`, tensor === undefined ? { file } : { file, tensor });
}

function quote(name: string): string {
  return name.length > MAX_NAME_SHOWN ? `'${name.slice(0, MAX_NAME_SHOWN)}…'` : `'${name}'`;
}
