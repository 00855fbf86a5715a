// Reading of regular files with a size limit, and of JSON objects. Every failure is a QFormerError: IO when the file cannot be
// read (missing, a directory, a device), FORMAT when its content is not what it should be. stat comes before open, because
// opening a named pipe would block the process.

import { closeSync, fstatSync, openSync, readFileSync, readSync, statSync, type Stats } from 'node:fs';

import { QFormerError, describe } from '../errors.js';

export type JsonObject = Record<string, unknown>;

/** Default limit for JSON files, in bytes: the largest real one, a tokenizer, has about 20 MB. */
export const MAX_JSON_BYTES = 128 * 2 ** 20;

/** The stats of `path`, or undefined when nothing is there. Throws IO for every other failure. */
export function statOptional(path: string): Stats | undefined {
  if (path.includes('\0'))
    throw new QFormerError('INVALID_ARGUMENT', `path contains a NUL character: ${describe(path)}`);
  try {
    return statSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw ioError(path, error);
  }
}

/** Size in bytes of the regular file `path`. Throws IO when it is missing, a directory or a device. */
export function fileSize(path: string): number {
  const stats = statOptional(path);
  if (stats === undefined) throw new QFormerError('IO', `${path}: no such file`, { file: path });
  requireFile(path, stats);
  return stats.size;
}

/** True when `path` is a regular file, false when nothing is there. Throws IO when it is something else. */
export function fileExists(path: string): boolean {
  const stats = statOptional(path);
  if (stats === undefined) return false;
  requireFile(path, stats);
  return true;
}

/** The whole content of a regular file. Throws IO, and FORMAT when it is longer than `maxBytes`. */
export function readWholeFile(path: string, maxBytes: number): Uint8Array {
  const size = fileSize(path);
  if (size > maxBytes) {
    throw new QFormerError('FORMAT', `${path}: ${size} bytes, more than the limit of ${maxBytes}`, {
      file: path,
      size,
      maxBytes,
    });
  }
  try {
    return readFileSync(path);
  } catch (error) {
    throw ioError(path, error);
  }
}

/** Calls `use` with a function that reads exactly `length` bytes at `offset`, and with the file's size; closes it afterwards. */
export function withOpenFile<T>(
  path: string,
  use: (read: (offset: number, length: number) => Uint8Array, size: number) => T,
): T {
  fileSize(path);
  let descriptor: number;
  try {
    descriptor = openSync(path, 'r');
  } catch (error) {
    throw ioError(path, error);
  }
  try {
    return use((offset, length) => readExactly(path, descriptor, offset, length), fstatSync(descriptor).size);
  } finally {
    closeSync(descriptor);
  }
}

/** The JSON object in a file. Throws IO, and FORMAT when it is not UTF-8, not JSON or not an object. */
export function readJsonObject(path: string, maxBytes = MAX_JSON_BYTES): JsonObject {
  const bytes = readWholeFile(path, maxBytes);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw new QFormerError(
      'FORMAT',
      `${path}: not valid JSON (${(error as Error).message})`,
      { file: path },
      { cause: error },
    );
  }
  if (!isJsonObject(value)) {
    throw new QFormerError('FORMAT', `${path}: must hold a JSON object, got ${describe(value)}`, { file: path });
  }
  return value;
}

/** True for what JSON calls an object: neither null nor an array. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** An IO error that names the file and carries the system's code. */
export function ioError(path: string, cause: unknown): QFormerError {
  const { code, message } = cause as NodeJS.ErrnoException;
  return new QFormerError('IO', `${path}: cannot be read (${code ?? message})`, { file: path, code }, { cause });
}

function requireFile(path: string, stats: Stats): void {
  if (stats.isFile()) return;
  const kind = stats.isDirectory() ? 'a directory' : 'not a regular file';
  throw new QFormerError('IO', `${path}: is ${kind}, expected a file`, { file: path });
}

function readExactly(path: string, descriptor: number, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    let count: number;
    try {
      count = readSync(descriptor, bytes, done, length - done, offset + done);
    } catch (error) {
      throw ioError(path, error);
    }
    if (count === 0) throw new QFormerError('IO', `${path}: became shorter while it was read`, { file: path });
    done += count;
  }
  return bytes;
}
