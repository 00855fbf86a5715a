// Image inputs → encoded bytes. Nothing is read beyond the limit: sizes are checked first where they are known (files, Blobs,
// data URLs, Content-Length) and while reading where they are not. The network is touched only when allowed.

import { open, stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import { QFormerError, describe } from '../errors.js';
import { ioError } from './files.js';
import type { ImageInput, ImageLimits } from './image.js';
import type { RawPixels } from './pixels.js';

/** Encoded bytes and what to call them in messages. */
export interface ImageBytes {
  bytes: Uint8Array;
  name: string;
}

/** The bytes behind an input. Rejects with INVALID_ARGUMENT, IO and ABORTED. */
export async function readImageBytes(input: Exclude<ImageInput, RawPixels>, limits: ImageLimits): Promise<ImageBytes> {
  if (typeof input === 'string') return fromString(input, limits);
  if (input instanceof URL) return fromUrl(input, limits);
  if (input instanceof Uint8Array) return { bytes: checked('image', input, limits), name: 'image' };
  if (input instanceof Blob) return fromBlob(input, limits);
  const accepted = 'a path, URL, Uint8Array, Blob or {data, width, height, channels}';
  throw new QFormerError('INVALID_ARGUMENT', `image must be ${accepted}, got ${describe(input)}`);
}

async function fromString(text: string, limits: ImageLimits): Promise<ImageBytes> {
  if (text === '') throw new QFormerError('INVALID_ARGUMENT', 'image path is empty');
  if (/^data:/i.test(text)) return fromDataUrl(text, limits);
  if (!/^(file:|[a-z][a-z0-9+.-]+:\/\/)/i.test(text)) return fromFile(text, limits);
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new QFormerError('INVALID_ARGUMENT', `image URL is not valid: ${describe(text)}`);
  }
  return fromUrl(url, limits);
}

async function fromUrl(url: URL, limits: ImageLimits): Promise<ImageBytes> {
  switch (url.protocol) {
    case 'file:':
      return fromFile(pathOf(url), limits);
    case 'data:':
      return fromDataUrl(url.href, limits);
    case 'http:':
    case 'https:':
      return fromHttp(url, limits);
    default:
      throw new QFormerError('INVALID_ARGUMENT', `image URLs of type ${url.protocol} are not accepted`, {
        url: url.href,
      });
  }
}

function pathOf(url: URL): string {
  try {
    return fileURLToPath(url);
  } catch (error) {
    throw new QFormerError(
      'INVALID_ARGUMENT',
      `${url.href}: not a usable file URL`,
      { url: url.href },
      { cause: error },
    );
  }
}

async function fromFile(path: string, limits: ImageLimits): Promise<ImageBytes> {
  if (path.includes('\0')) throw new QFormerError('INVALID_ARGUMENT', 'image path contains a NUL character');
  try {
    const { size, ...kind } = await kindOf(path);
    if (!kind.isFile) throw notAFile(path, kind.isDirectory);
    if (size > limits.maxBytes) throw tooLarge(path, size, limits);
    const file = await open(path, 'r');
    try {
      // one byte more than allowed shows a file that has grown since
      const bytes = Buffer.allocUnsafeSlow(Math.min(size, limits.maxBytes) + 1);
      let length = 0;
      for (let count = 1; count > 0 && length < bytes.length; length += count) {
        ({ bytesRead: count } = await file.read(bytes, length, bytes.length - length, length));
      }
      return { bytes: checked(path, bytes.subarray(0, length), limits), name: path };
    } finally {
      await file.close();
    }
  } catch (error) {
    throw error instanceof QFormerError ? error : ioError(path, error);
  }
}

async function kindOf(path: string): Promise<{ size: number; isFile: boolean; isDirectory: boolean }> {
  const stats = await stat(path);
  return { size: stats.size, isFile: stats.isFile(), isDirectory: stats.isDirectory() };
}

function notAFile(path: string, isDirectory: boolean): QFormerError {
  const kind = isDirectory ? 'a directory' : 'not a regular file';
  return new QFormerError('IO', `${path}: is ${kind}, expected an image file`, { file: path });
}

async function fromBlob(blob: Blob, limits: ImageLimits): Promise<ImageBytes> {
  const name = blob instanceof File && blob.name !== '' ? blob.name : 'Blob';
  if (blob.size > limits.maxBytes) throw tooLarge(name, blob.size, limits);
  try {
    return { bytes: checked(name, new Uint8Array(await blob.arrayBuffer()), limits), name };
  } catch (error) {
    throw error instanceof QFormerError ? error : ioError(name, error);
  }
}

function fromDataUrl(url: string, limits: ImageLimits): ImageBytes {
  const name = 'data URL';
  const comma = url.indexOf(',');
  if (comma < 0) throw badDataUrl('has no comma');
  const [type = '', ...parameters] = url.slice('data:'.length, comma).split(';');
  if (type !== '' && !/^(image\/|application\/octet-stream$)/i.test(type))
    throw badDataUrl(`holds ${describe(type)}, not an image`);
  const base64 = parameters.some((parameter) => parameter.trim().toLowerCase() === 'base64');
  // base64 takes 4 characters for 3 bytes, percent-encoding up to 3 for one
  if ((url.length - comma) / (base64 ? 4 / 3 : 3) > limits.maxBytes + 4) throw tooLarge(name, url.length, limits);
  const body = percentDecoded(url.slice(comma + 1));
  return { bytes: checked(name, base64 ? fromBase64(body.toString('latin1')) : body, limits), name };
}

function fromBase64(text: string): Uint8Array {
  const compact = text.replace(/[\t\n\f\r ]+/g, '');
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(compact) || compact.replace(/=+$/, '').length % 4 === 1) {
    throw badDataUrl('is not valid base64');
  }
  return Buffer.from(compact, 'base64');
}

function percentDecoded(text: string): Buffer {
  if (!text.includes('%')) return Buffer.from(text, 'utf8');
  if (/%(?![0-9A-Fa-f]{2})/.test(text)) throw badDataUrl('has a % that is not followed by two hexadecimal digits');
  const parts = text.split(/((?:%[0-9A-Fa-f]{2})+)/);
  return Buffer.concat(
    parts.map((part) =>
      part.startsWith('%') ? Buffer.from(part.replaceAll('%', ''), 'hex') : Buffer.from(part, 'utf8'),
    ),
  );
}

function badDataUrl(problem: string): QFormerError {
  return new QFormerError('INVALID_ARGUMENT', `data URL ${problem}`);
}

async function fromHttp(url: URL, limits: ImageLimits): Promise<ImageBytes> {
  const name = url.href;
  if (!limits.allowHttp) {
    throw new QFormerError('INVALID_ARGUMENT', `${name}: http(s) images are not allowed (set allowHttp)`, {
      url: name,
    });
  }
  const timeout = AbortSignal.timeout(limits.httpTimeout);
  const signal = limits.signal === undefined ? timeout : AbortSignal.any([timeout, limits.signal]);
  try {
    const response = await fetch(url, { signal, headers: { accept: 'image/*' } });
    if (!response.ok) {
      await response.body?.cancel();
      throw new QFormerError('IO', `${name}: the server answered ${response.status}`, {
        url: name,
        status: response.status,
      });
    }
    return { bytes: checked(name, await readBody(response, name, limits), limits), name };
  } catch (error) {
    if (error instanceof QFormerError) throw error;
    if (limits.signal?.aborted)
      throw new QFormerError('ABORTED', 'loading the image was aborted', {}, { cause: error });
    const reason = timeout.aborted ? `no answer within ${limits.httpTimeout} ms` : causeOf(error);
    throw new QFormerError('IO', `${name}: cannot be fetched (${reason})`, { url: name }, { cause: error });
  }
}

async function readBody(response: Response, name: string, limits: ImageLimits): Promise<Uint8Array> {
  const stated = Number(response.headers.get('content-length') ?? 0);
  const chunks: Uint8Array[] = [];
  let size = 0;
  // leaving the loop by an error cancels the transfer
  for await (const chunk of response.body ?? []) {
    size += (chunk as Uint8Array).length;
    if (size > limits.maxBytes || stated > limits.maxBytes) throw tooLarge(name, Math.max(size, stated), limits);
    chunks.push(chunk as Uint8Array);
  }
  return Buffer.concat(chunks);
}

function causeOf(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error ? `${message}: ${cause.message}` : message;
}

function checked(name: string, bytes: Uint8Array, limits: ImageLimits): Uint8Array {
  if (bytes.length === 0) throw new QFormerError('FORMAT', `${name}: is empty, expected an image`);
  if (bytes.length > limits.maxBytes) throw tooLarge(name, bytes.length, limits);
  return bytes;
}

function tooLarge(name: string, size: number, { maxBytes }: ImageLimits): QFormerError {
  const message = `${name}: ${size} bytes, more than the limit of ${maxBytes} (maxBytes)`;
  return new QFormerError('INVALID_ARGUMENT', message, { size, maxBytes });
}
