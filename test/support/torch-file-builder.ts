// Builds PyTorch's zip files for tests, honest and lying ones: pickles from opcodes, archives from entries.

import { Buffer } from 'node:buffer';

/** Opcodes as bytes; what is put between them is up to the test. */
export const op = {
  proto: Buffer.of(0x80, 2),
  mark: Buffer.from('('),
  stop: Buffer.from('.'),
  none: Buffer.from('N'),
  emptyDict: Buffer.from('}'),
  emptyTuple: Buffer.from(')'),
  emptyList: Buffer.from(']'),
  tuple: Buffer.from('t'),
  reduce: Buffer.from('R'),
  build: Buffer.from('b'),
  persistentId: Buffer.from('Q'),
  setItems: Buffer.from('u'),
  append: Buffer.from('a'),
  stackGlobal: Buffer.of(0x93),
  global: (module: string, name: string) => Buffer.from(`c${module}\n${name}\n`),
  inst: (module: string, name: string) => Buffer.from(`i${module}\n${name}\n`),
  put: (index: number) => Buffer.of(0x71, index),
  get: (index: number) => Buffer.of(0x68, index),
  int(value: number): Buffer {
    const bytes = Buffer.alloc(5, 'J');
    bytes.writeInt32LE(value, 1);
    return bytes;
  },
  text(value: string): Buffer {
    const length = Buffer.alloc(5, 'X');
    length.writeUInt32LE(Buffer.byteLength(value), 1);
    return Buffer.concat([length, Buffer.from(value)]);
  },
};

/** A tensor of a file; what is absent fits the rest. */
export interface BuiltTorchTensor {
  storage?: string;
  key?: string;
  elements: number;
  offset?: number;
  shape: number[];
  stride?: number[];
}

const ints = (values: readonly number[]): Buffer => Buffer.concat([op.mark, ...values.map(op.int), op.tuple]);

/** Strides of a row-major tensor. */
export const rowMajor = (shape: readonly number[]): number[] =>
  shape.map((_, axis) => shape.slice(axis + 1).reduce((product, size) => product * size, 1));

/** The opcodes that leave a tensor on the stack. */
export function tensorPickle({
  storage = 'FloatStorage',
  key = '0',
  elements,
  offset = 0,
  shape,
  stride,
}: BuiltTorchTensor): Buffer {
  return Buffer.concat([
    op.global('torch._utils', '_rebuild_tensor_v2'),
    op.mark,
    op.mark,
    op.text('storage'),
    op.global('torch', storage),
    op.text(key),
    op.text('cpu'),
    op.int(elements),
    op.tuple,
    op.persistentId,
    op.int(offset),
    ints(shape),
    ints(stride ?? rowMajor(shape)),
    Buffer.of(0x89),
    op.global('collections', 'OrderedDict'),
    op.emptyTuple,
    op.reduce,
    op.tuple,
    op.reduce,
  ]);
}

/** The pickle of a dict of values, each given as opcodes. */
export function dictPickle(values: Record<string, Buffer>): Buffer {
  const items = Object.entries(values).flatMap(([name, value]) => [op.text(name), value]);
  return Buffer.concat([op.proto, op.emptyDict, op.mark, ...items, op.setItems, op.stop]);
}

/** Lies that a zip archive may tell. */
export interface ZipOptions {
  /** Of every entry; 0 is stored. */
  method?: number;
  flags?: number;
  /** Sizes and offsets in zip64 fields. */
  zip64?: boolean;
  /** Added to the size, or the place, that the directory states for the last entry. */
  lastSize?: number;
  lastOffset?: number;
  comment?: string;
}

/** A zip archive of stored entries. */
export function zip(entries: Record<string, Uint8Array>, options: ZipOptions = {}): Buffer {
  const { method = 0, flags = 0, zip64 = false, lastSize = 0, lastOffset = 0, comment = '' } = options;
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  const list = Object.entries(entries);
  list.forEach(([name, data], i) => {
    const isLast = i === list.length - 1;
    const size = data.length + (isLast ? lastSize : 0);
    const place = at + (isLast ? lastOffset : 0);
    const label = Buffer.from(name);
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(method, 8);
    local.writeUInt16LE(label.length, 26);
    const padding = Buffer.alloc((64 - ((at + 30 + label.length) % 64)) % 64);
    local.writeUInt16LE(padding.length, 28);
    parts.push(local, label, padding, Buffer.from(data));
    at += 30 + label.length + padding.length + data.length;
    directory.push(...directoryEntry(label, size, place, { method, flags, zip64 }));
  });
  const central = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(zip64 ? 0xffff : list.length, 10);
  end.writeUInt32LE(zip64 ? 0xffffffff : central.length, 12);
  end.writeUInt32LE(zip64 ? 0xffffffff : at, 16);
  end.writeUInt16LE(comment.length, 20);
  const wide = zip64 ? end64(list.length, central.length, at) : [];
  return Buffer.concat([...parts, central, ...wide, end, Buffer.from(comment)]);
}

function directoryEntry(
  label: Buffer,
  size: number,
  place: number,
  options: Required<Pick<ZipOptions, 'method' | 'flags' | 'zip64'>>,
): Buffer[] {
  const { method, flags, zip64 } = options;
  const header = Buffer.alloc(46);
  header.writeUInt32LE(0x02014b50, 0);
  header.writeUInt16LE(flags, 8);
  header.writeUInt16LE(method, 10);
  header.writeUInt32LE(zip64 ? 0xffffffff : size >>> 0, 20);
  header.writeUInt32LE(zip64 ? 0xffffffff : size >>> 0, 24);
  header.writeUInt16LE(label.length, 28);
  header.writeUInt32LE(zip64 ? 0xffffffff : place >>> 0, 42);
  if (!zip64) return [header, label];
  const extra = Buffer.alloc(4 + 24);
  extra.writeUInt16LE(1, 0);
  extra.writeUInt16LE(24, 2);
  [size, size, place].forEach((value, i) => extra.writeBigUInt64LE(BigInt(value), 4 + 8 * i));
  header.writeUInt16LE(extra.length, 30);
  return [header, label, extra];
}

function end64(count: number, bytes: number, offset: number): Buffer[] {
  const record = Buffer.alloc(56);
  record.writeUInt32LE(0x06064b50, 0);
  record.writeBigUInt64LE(44n, 4);
  [count, count, bytes, offset].forEach((value, i) => record.writeBigUInt64LE(BigInt(value), 24 + 8 * i));
  const locator = Buffer.alloc(20);
  locator.writeUInt32LE(0x07064b50, 0);
  locator.writeBigUInt64LE(BigInt(offset + bytes), 8);
  locator.writeUInt32LE(1, 16);
  return [record, locator];
}

/** A whole file: the pickle, the storages by key, and what else the archive holds. */
export function torchFile(
  pickle: Uint8Array,
  storages: Record<string, number>,
  options: ZipOptions & { more?: Record<string, Uint8Array> } = {},
): Buffer {
  const data = Object.entries(storages).map(([key, bytes]) => [`archive/data/${key}`, Buffer.alloc(bytes, 7)] as const);
  return zip({ 'archive/data.pkl': pickle, ...options.more, ...Object.fromEntries(data) }, options);
}

/** A file that holds f32 tensors, each in a storage of its own. */
export function torchFileOf(tensors: readonly { name: string; shape: number[]; values: Float32Array }[]): Buffer {
  const pickles: Record<string, Buffer> = {};
  const storages: Record<string, Uint8Array> = {};
  tensors.forEach(({ name, shape, values }, i) => {
    pickles[name] = tensorPickle({ key: String(i), elements: values.length, shape });
    storages[`archive/data/${i}`] = new Uint8Array(values.buffer);
  });
  return zip({ 'archive/data.pkl': dictPickle(pickles), ...storages });
}
