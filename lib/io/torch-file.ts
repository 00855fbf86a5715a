// PyTorch's own files of tensors (pytorch_model.bin): a zip archive of a pickle that describes the tensors and one stored entry
// per storage. The pickle is read by a machine that executes nothing (pickle.ts); the storages stay where they are and are
// mapped like those of a safetensors file. Since PyTorch 1.6; files of older versions are named as such and refused.

import { QFormerError, describe } from '../errors.js';
import { withOpenFile } from './files.js';
import { readPickle, type PickleValue, type TensorRef } from './pickle.js';
import { ELEMENT_BYTES, type TensorEntry } from './safetensors.js';
import { withZip, type ByteRange, type ZipArchive } from './zip.js';

const MAX_PICKLE_BYTES = 64 * 2 ** 20;
/** A pickled long, the magic number of the format before 1.6. */
const LEGACY_MAGIC = Uint8Array.of(0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19);

/**
 * The tensors of a .bin file by name, with their places in it. Throws IO, FORMAT (damaged, contradictory, or asking for anything
 * but tensors) and UNSUPPORTED (older than PyTorch 1.6, compressed, big-endian, not contiguous).
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

/** The tensors of a state dict. What else it holds is not for us, but a file without a tensor at its top is an error. */
function namedTensors(value: PickleValue, file: string): [string, TensorRef][] {
  if (!(value instanceof Map)) throw fault(file, 'does not hold a dict of tensors');
  const named: [string, TensorRef][] = [];
  for (const [name, entry] of value) {
    if (typeof entry !== 'object' || entry === null || !('kind' in entry) || entry.kind !== 'tensor') continue;
    if (typeof name !== 'string') throw fault(file, `a tensor has the name ${describe(name)}`);
    named.push([name, entry]);
  }
  if (named.length > 0) return named;
  const keys = [...value.keys()].slice(0, 8).map((key) => describe(key));
  throw fault(file, `has no tensors at its top; it holds ${keys.join(', ') || 'nothing'}`);
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
  if (!isContiguous(shape, stride)) {
    const message = `${file}: tensor ${describe(name)}: strides [${stride}] of shape [${shape}] are not contiguous; save it with .contiguous()`;
    throw new QFormerError('UNSUPPORTED', message, { file, tensor: name });
  }
  if (offset + elements > storage.elements) {
    const what = `[${shape}] from element ${offset}`;
    throw fault(file, `${what} does not fit into a storage of ${storage.elements}`, name);
  }
  const bytes = elements * size;
  return { name, dtype: storage.dtype, shape, offset: range.offset + offset * size, bytes, file };
}

/** Row-major without gaps; the stride of an axis of length 1 says nothing, and an empty tensor has no elements to place. */
function isContiguous(shape: readonly number[], stride: readonly number[]): boolean {
  if (shape.includes(0)) return true;
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && stride[axis] !== expected) return false;
    expected *= shape[axis]!;
  }
  return true;
}

function fault(file: string, message: string, tensor?: string): QFormerError {
  const where = tensor === undefined ? file : `${file}: tensor ${describe(tensor)}`;
  return new QFormerError('FORMAT', `${where}: ${message}`, tensor === undefined ? { file } : { file, tensor });
}
