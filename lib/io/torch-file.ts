// PyTorch's own files of tensors (pytorch_model.bin): a zip archive of a pickle that describes the tensors and one stored entry
// per storage. The pickle is read by a machine that executes nothing (pickle.ts); the storages stay where they are and are
// mapped like those of a safetensors file. Since PyTorch 1.6; files of older versions are named as such and refused.

import { QFormerError, describe } from '../errors.js';
import { withOpenFile } from './files.js';
import { readPickle, type PickleValue, type TensorRef } from './pickle.js';
import { ELEMENT_BYTES, type TensorEntry } from './safetensors.js';
import { withZip, type ByteRange, type ZipArchive } from './zip.js';

/** Where training code keeps the state dict. */
const NESTED = ['model', 'state_dict'];
const MAX_PICKLE_BYTES = 64 * 2 ** 20;
/** A pickled long, the magic number of the format before 1.6. */
const LEGACY_MAGIC = Uint8Array.of(0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19);

/**
 * The tensors of a .bin file by name, with their places in it. Throws IO, FORMAT (damaged, contradictory, or asking for anything
 * but tensors) and UNSUPPORTED (older than PyTorch 1.6, compressed, big-endian, tensors with gaps).
 */
export function readTorchFile(file: string): Map<string, TensorEntry> {
  refuseLegacy(file);
  return withZip(file, (archive) => {
    const pickles = archive.names.filter((name) => /^[^/]+\/data\.pkl$/.test(name));
    if (pickles.length !== 1)
      throw fault(file, `holds ${pickles.length} entries named data.pkl, a tensor file has one`);
    const root = pickles[0]!.slice(0, -'data.pkl'.length);
    refuseBigEndian(archive, root);
    const range = archive.find(pickles[0]!)!;
    if (range.bytes > MAX_PICKLE_BYTES) throw fault(file, `a pickle of ${range.bytes} bytes`);
    const named = namedTensors(readPickle(archive.read(range.offset, range.bytes), file), file);
    const storages = new Map<string, ByteRange>();
    const entries = named.map(([name, tensor]): [string, TensorEntry] => {
      const { key } = tensor.storage;
      const storage = storages.get(key) ?? archive.find(`${root}data/${key}`);
      if (storage === undefined) throw fault(file, `has no storage ${describe(key)}`, name);
      storages.set(key, storage);
      return [name, placed(name, tensor, storage, file)];
    });
    return new Map(entries);
  });
}

function refuseLegacy(file: string): void {
  const start = withOpenFile(file, (read, size) => read(0, Math.min(size, 2 + LEGACY_MAGIC.length)));
  if (!LEGACY_MAGIC.every((byte, i) => start[i + 2] === byte)) return;
  const message = `${file}: was written by PyTorch before 1.6 or without its zip format; save it again with a newer one, or as safetensors`;
  throw new QFormerError('UNSUPPORTED', message, { file });
}

function refuseBigEndian(archive: ZipArchive, root: string): void {
  const range = archive.find(`${root}byteorder`);
  if (range === undefined) return;
  const order = new TextDecoder().decode(archive.read(range.offset, Math.min(range.bytes, 16)));
  if (order === 'little') return;
  const message = `${archive.file}: byte order ${describe(order)}, only little-endian files are read`;
  throw new QFormerError('UNSUPPORTED', message, { file: archive.file });
}

/**
 * The tensors of a state dict, which lies at the top or, as training code saves it, one level down beside other things. What else
 * there is is not for us, but a file without tensors in these places is an error.
 */
function namedTensors(value: PickleValue, file: string): [string, TensorRef][] {
  if (!(value instanceof Map)) throw fault(file, 'does not hold a dict of tensors');
  const dicts = [value, ...NESTED.map((key) => value.get(key))].map((dict) => tensorsOf(dict, file));
  const holding = dicts.filter(({ length }) => length > 0);
  const keys = [...value.keys()].slice(0, 8).map((key) => describe(key));
  const shown = keys.join(', ') || 'nothing';
  if (holding.length === 0) throw fault(file, `has no tensors at its top; it holds ${shown}`);
  const nested = dicts.slice(1).filter(({ length }) => length > 0);
  if (nested.length > 1 && holding[0] === nested[0]) {
    throw fault(file, `has tensors under ${NESTED.join(' and ')}; which are meant? It holds ${shown}`);
  }
  return holding[0]!;
}

function tensorsOf(dict: PickleValue | undefined, file: string): [string, TensorRef][] {
  const named: [string, TensorRef][] = [];
  if (!(dict instanceof Map)) return named;
  for (const [name, entry] of dict) {
    if (typeof entry !== 'object' || entry === null || !('kind' in entry) || entry.kind !== 'tensor') continue;
    if (typeof name !== 'string') throw fault(file, `a tensor has the name ${describe(name)}`);
    named.push([name, entry]);
  }
  return named;
}

function placed(name: string, tensor: TensorRef, range: ByteRange, file: string): TensorEntry {
  const { storage, offset, shape, stride } = tensor;
  const size = ELEMENT_BYTES.get(storage.dtype)!;
  const elements = shape.reduce((product, length) => product * length, 1);
  if (!Number.isSafeInteger(elements * size)) throw fault(file, `shape [${shape}] is too large`, name);
  if (!Number.isSafeInteger(storage.elements * size) || storage.elements * size > range.bytes) {
    throw fault(
      file,
      `its storage has ${range.bytes} bytes, but should have ${storage.elements} elements of ${size}`,
      name,
    );
  }
  const order = storedOrder(shape, stride);
  if (order === undefined) {
    const message = `${file}: tensor ${describe(name)}: strides [${stride}] of shape [${shape}] leave gaps or overlap; save it with .contiguous()`;
    throw new QFormerError('UNSUPPORTED', message, { file, tensor: name });
  }
  if (offset + elements > storage.elements) {
    const what = `[${shape}] from element ${offset}`;
    throw fault(file, `${what} does not fit into a storage of ${storage.elements}`, name);
  }
  const entry = {
    name,
    dtype: storage.dtype,
    shape,
    offset: range.offset + offset * size,
    bytes: elements * size,
    file,
  };
  return order.every((axis, i) => axis === i) ? entry : { ...entry, order };
}

/**
 * The axes from the slowest to the fastest where the elements lie without gaps and overlaps, so that they take as many places as
 * there are elements; else undefined. The stride of an axis of length 1 says nothing: it comes first.
 */
function storedOrder(shape: readonly number[], stride: readonly number[]): number[] | undefined {
  const own = shape.map((_, axis) => axis);
  if (shape.includes(0) || isDense(own, shape, stride)) return own;
  const long = own.filter((axis) => shape[axis] !== 1).sort((a, b) => stride[b]! - stride[a]!);
  const order = [...own.filter((axis) => shape[axis] === 1), ...long];
  return isDense(order, shape, stride) ? order : undefined;
}

function isDense(order: readonly number[], shape: readonly number[], stride: readonly number[]): boolean {
  let expected = 1;
  for (const axis of order.toReversed()) {
    if (shape[axis] !== 1 && stride[axis] !== expected) return false;
    expected *= shape[axis]!;
  }
  return true;
}

function fault(file: string, message: string, tensor?: string): QFormerError {
  const where = tensor === undefined ? file : `${file}: tensor ${describe(tensor)}`;
  return new QFormerError('FORMAT', `${where}: ${message}`, tensor === undefined ? { file } : { file, tensor });
}
