// The file of an image index: a safetensors file with one tensor `vectors` [images, rows, dim] F32 and, as its metadata, the
// format's name and version, the digest of the model that made the vectors, and the images' ids.

import { open, rename, rm } from 'node:fs/promises';
import { QFormerError } from '../errors.js';
import { isJsonObject, withOpenFile } from './files.js';
import { readSafetensorsHeader } from './safetensors.js';

const FORMAT = 'qformer-image-index';
const VERSION = '1';
const LENGTH_BYTES = 8;

/** The content of an index. */
export interface VectorFile {
  /** Digest of the model. */
  model: string;
  ids: string[];
  /** [ids, rows, dim]; one array per id */
  vectors: Float32Array[];
  rows: number;
  dim: number;
}

/** Writes an index; a file of that name is replaced when all is written. Rejects with IO. */
export async function writeVectorFile(file: string, { model, ids, vectors, rows, dim }: VectorFile): Promise<void> {
  const shape = [ids.length, rows, dim];
  const header = {
    __metadata__: { format: FORMAT, version: VERSION, model, ids: JSON.stringify(ids) },
    vectors: { dtype: 'F32', shape, data_offsets: [0, 4 * ids.length * rows * dim] },
  };
  // Padded, so that the vectors are aligned.
  const text = JSON.stringify(header);
  const bytes = Buffer.byteLength(text);
  const json = Buffer.from(text + ' '.repeat((8 - (bytes % 8)) % 8));
  const length = Buffer.alloc(LENGTH_BYTES);
  length.writeBigUInt64LE(BigInt(json.length));
  const partial = `${file}.${process.pid}.partial`;
  try {
    const handle = await open(partial, 'w');
    try {
      for (const part of [length, json, ...vectors.map(bytesOf)]) await handle.writeFile(part);
    } finally {
      await handle.close();
    }
    await rename(partial, file);
  } catch (error) {
    await rm(partial, { force: true });
    const { code, message } = error as NodeJS.ErrnoException;
    throw new QFormerError('IO', `${file}: cannot be written (${code ?? message})`, { file, code }, { cause: error });
  }
}

/** Reads an index. Throws IO, FORMAT (no index, or damaged) and UNSUPPORTED (a version that is not known). */
export function readVectorFile(file: string): VectorFile {
  const { format, version, model, ids: list } = readMetadata(file);
  if (format !== FORMAT) throw fault(file, 'is no image index');
  if (version !== VERSION) {
    const message = `${file}: an image index of version ${String(version)}; this release reads version ${VERSION}`;
    throw new QFormerError('UNSUPPORTED', message, { file, version });
  }
  const entry = readSafetensorsHeader(file).get('vectors');
  const [count, rows = 0, dim = 0] = entry?.shape ?? [];
  const ids = parseIds(list);
  if (entry?.dtype !== 'F32' || entry.shape.length !== 3 || model === undefined || ids?.length !== count) {
    throw fault(file, 'is a damaged image index: its ids and its vectors do not fit');
  }
  const size = 4 * rows * dim;
  const vectors = withOpenFile(file, (read) =>
    ids!.map((_, i) => new Float32Array(read(entry.offset + i * size, size).buffer)),
  );
  return { model, ids: ids!, vectors, rows, dim };
}

function readMetadata(file: string): Record<string, string | undefined> {
  try {
    readSafetensorsHeader(file);
  } catch (error) {
    if ((error as QFormerError).code !== 'FORMAT') throw error;
    throw fault(file, 'is no image index, or damaged', error);
  }
  return withOpenFile(file, (read) => {
    const length = new DataView(read(0, LENGTH_BYTES).buffer).getBigUint64(0, true);
    const header = JSON.parse(new TextDecoder().decode(read(LENGTH_BYTES, Number(length)))) as Record<string, unknown>;
    const metadata = header.__metadata__;
    return isJsonObject(metadata) ? (metadata as Record<string, string>) : {};
  });
}

function parseIds(text: string | undefined): string[] | undefined {
  try {
    const ids: unknown = JSON.parse(text ?? '');
    return Array.isArray(ids) && ids.every((id) => typeof id === 'string') ? ids : undefined;
  } catch {
    return undefined;
  }
}

const fault = (file: string, problem: string, cause?: unknown): QFormerError =>
  new QFormerError('FORMAT', `${file}: ${problem}`, { file }, { cause });

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);
