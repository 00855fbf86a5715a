// The table of contents of a zip archive whose entries are stored, not compressed: where each entry's bytes lie in the file, so
// that they can be mapped in place. The archive is untrusted: every size and place is checked against the file, nothing is
// extracted, and an entry is looked at only when it is asked for. Checksums are not verified, since that would read everything.
// Format: PKWARE APPNOTE 6.3, sections 4.3 and 4.5.3 (zip64).

import { QFormerError, describe } from '../errors.js';
import { withOpenFile } from './files.js';

/** Bytes of a file, from its beginning. */
export interface ByteRange {
  offset: number;
  bytes: number;
}

/** Reads `length` bytes at `offset`. */
type Read = (offset: number, length: number) => Uint8Array;

interface Entry {
  name: string;
  method: number;
  encrypted: boolean;
  bytes: number;
  /** Of the local header. */
  header: number;
}

const END = 0x06054b50;
const END64 = 0x06064b50;
const LOCATOR64 = 0x07064b50;
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
const END_BYTES = 22;
const LOCATOR64_BYTES = 20;
const END64_BYTES = 56;
const CENTRAL_BYTES = 46;
const LOCAL_BYTES = 30;
const MAX_COMMENT = 0xffff;
/** A published shard has about a thousand entries. */
const MAX_ENTRIES = 2 ** 18;
const MAX_DIRECTORY_BYTES = 64 * 2 ** 20;
const UNKNOWN_32 = 0xffffffff;
const UNKNOWN_16 = 0xffff;

/** An open archive; valid while `withZip` runs. */
export class ZipArchive {
  readonly #entries: Map<string, Entry>;

  constructor(
    readonly file: string,
    readonly read: Read,
    /** Where the central directory begins: entries lie before it. */
    private readonly end: number,
    entries: readonly Entry[],
  ) {
    this.#entries = new Map(entries.map((entry) => [entry.name, entry]));
    if (this.#entries.size < entries.length) throw fault(file, 'two entries have the same name');
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  /** Where the bytes of an entry lie; undefined where there is no such entry. Throws FORMAT and UNSUPPORTED (compressed). */
  find(name: string): ByteRange | undefined {
    const entry = this.#entries.get(name);
    if (entry === undefined) return undefined;
    const { method, encrypted, bytes, header } = entry;
    if (method !== 0 || encrypted) {
      const message = `${this.file}: entry ${describe(name)} is ${encrypted ? 'encrypted' : 'compressed'}, only stored entries are read`;
      throw new QFormerError('UNSUPPORTED', message, { file: this.file, entry: name });
    }
    if (header + LOCAL_BYTES > this.end) throw fault(this.file, `entry ${describe(name)} lies outside the file`);
    const local = view(this.read(header, LOCAL_BYTES));
    const nameBytes = local.getUint16(26, true);
    const offset = header + LOCAL_BYTES + nameBytes + local.getUint16(28, true);
    if (local.getUint32(0, true) !== LOCAL) throw fault(this.file, `entry ${describe(name)} has no local header`);
    if (offset + bytes > this.end) throw fault(this.file, `entry ${describe(name)} lies outside the file`);
    if (utf8(this.read(header + LOCAL_BYTES, nameBytes)) !== name) {
      throw fault(this.file, `the local header of entry ${describe(name)} names another one`);
    }
    return { offset, bytes };
  }
}

/** Calls `use` with the archive in `file`. Throws IO, FORMAT (no zip archive, or one that contradicts itself) and UNSUPPORTED. */
export function withZip<T>(file: string, use: (archive: ZipArchive) => T): T {
  return withOpenFile(file, (read, size) => {
    const { offset, bytes, count } = findDirectory(file, read, size);
    return use(new ZipArchive(file, read, offset, readDirectory(file, read(offset, bytes), count)));
  });
}

/** The central directory: its place and how many entries it has. */
function findDirectory(file: string, read: Read, size: number): ByteRange & { count: number } {
  const tailBytes = Math.min(size, END_BYTES + MAX_COMMENT);
  const tailStart = size - tailBytes;
  const tail = view(read(tailStart, tailBytes));
  let at = tailBytes - END_BYTES;
  // The comment that follows must reach exactly to the end, which a signature inside a comment does not.
  while (at >= 0 && !(tail.getUint32(at, true) === END && at + END_BYTES + tail.getUint16(at + 20, true) === tailBytes))
    at--;
  if (at < 0) throw fault(file, 'not a zip archive, or a truncated one: it has no end record');
  const found = {
    disks: tail.getUint16(at + 4, true) + tail.getUint16(at + 6, true),
    count: tail.getUint16(at + 10, true),
    bytes: tail.getUint32(at + 12, true),
    offset: tail.getUint32(at + 16, true),
  };
  let end = tailStart + at;
  if (found.count === UNKNOWN_16 || found.bytes === UNKNOWN_32 || found.offset === UNKNOWN_32) {
    end = findEnd64(file, read, end);
    const record = view(read(end, END64_BYTES));
    found.disks = record.getUint32(16, true) + record.getUint32(20, true);
    found.count = size64(file, record, 32);
    found.bytes = size64(file, record, 40);
    found.offset = size64(file, record, 48);
  }
  const { disks, count, bytes, offset } = found;
  if (disks !== 0) throw fault(file, 'an archive of several volumes');
  if (count > MAX_ENTRIES || bytes > MAX_DIRECTORY_BYTES)
    throw fault(file, `its directory has ${count} entries in ${bytes} bytes, too many`);
  if (offset + bytes > end) throw fault(file, 'its directory lies outside the file');
  return { offset, bytes, count };
}

/** Where the zip64 end record lies, which the locator in front of the end record at `end` names. */
function findEnd64(file: string, read: Read, end: number): number {
  if (end < LOCATOR64_BYTES) throw fault(file, 'truncated: it has no zip64 locator');
  const locator = view(read(end - LOCATOR64_BYTES, LOCATOR64_BYTES));
  if (locator.getUint32(0, true) !== LOCATOR64) throw fault(file, 'it has no zip64 locator');
  const offset = size64(file, locator, 8);
  if (offset + END64_BYTES > end) throw fault(file, 'its zip64 end record lies outside the file');
  if (view(read(offset, 4)).getUint32(0, true) !== END64) throw fault(file, 'it has no zip64 end record');
  return offset;
}

function readDirectory(file: string, bytes: Uint8Array, count: number): Entry[] {
  const directory = view(bytes);
  const entries: Entry[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + CENTRAL_BYTES > bytes.length || directory.getUint32(at, true) !== CENTRAL) {
      throw fault(file, `entry ${i} of its directory is damaged`);
    }
    const nameBytes = directory.getUint16(at + 28, true);
    const extraBytes = directory.getUint16(at + 30, true);
    const next = at + CENTRAL_BYTES + nameBytes + extraBytes + directory.getUint16(at + 32, true);
    if (next > bytes.length) throw fault(file, `entry ${i} of its directory is damaged`);
    const nameStart = at + CENTRAL_BYTES;
    const name = utf8(bytes.subarray(nameStart, nameStart + nameBytes));
    const extra = view(bytes.subarray(nameStart + nameBytes, nameStart + nameBytes + extraBytes));
    const sizes = [
      directory.getUint32(at + 24, true),
      directory.getUint32(at + 20, true),
      directory.getUint32(at + 42, true),
    ];
    const [stored, packed, header] = widened(file, sizes, extra) as [number, number, number];
    const method = directory.getUint16(at + 10, true);
    if (method === 0 && stored !== packed) throw fault(file, `entry ${describe(name)} has two sizes`);
    entries.push({ name, method, encrypted: (directory.getUint16(at + 8, true) & 1) !== 0, bytes: stored, header });
    at = next;
  }
  return entries;
}

/** Sizes of a directory entry, those that do not fit into 32 bits from its zip64 extra field, which has them in the same order. */
function widened(file: string, sizes: readonly number[], extra: DataView): number[] {
  if (!sizes.includes(UNKNOWN_32)) return [...sizes];
  for (let at = 0; at + 4 <= extra.byteLength;) {
    const [id, bytes] = [extra.getUint16(at, true), extra.getUint16(at + 2, true)];
    const [start, end] = [at + 4, at + 4 + bytes];
    if (end > extra.byteLength) break;
    if (id === 1) {
      let from = start;
      return sizes.map((size) => {
        if (size !== UNKNOWN_32) return size;
        if (from + 8 > end) throw fault(file, 'a zip64 field is too short');
        from += 8;
        return size64(file, extra, from - 8);
      });
    }
    at = end;
  }
  throw fault(file, 'a zip64 field is missing');
}

function size64(file: string, record: DataView, at: number): number {
  const size = record.getBigUint64(at, true);
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw fault(file, `a size of ${size} bytes`);
  return Number(size);
}

const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const utf8 = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

function fault(file: string, message: string): QFormerError {
  return new QFormerError('FORMAT', `${file}: ${message}`, { file });
}
