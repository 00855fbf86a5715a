// Builds safetensors files for tests: honest ones from shapes, and lying ones from any header text.

import { Buffer } from 'node:buffer';

export interface BuiltTensor {
  dtype: string;
  shape: number[];
  bytes: number;
}

/** A file of header text and `dataBytes` zero bytes; `length` overrides the header length that the file states. */
export function rawSafetensors(header: string | Uint8Array, dataBytes: number, length?: bigint): Uint8Array {
  const text = Buffer.from(header);
  const file = Buffer.alloc(8 + text.length + dataBytes);
  file.writeBigUInt64LE(length ?? BigInt(text.length));
  text.copy(file, 8);
  return file;
}

/** The header object and data size of tensors stored one after another. */
export function layout(tensors: Record<string, BuiltTensor>): { header: Record<string, unknown>; dataBytes: number } {
  let position = 0;
  // without a prototype: a tensor may be named __proto__
  const header = Object.create(null) as Record<string, unknown>;
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [position, position + bytes] };
    position += bytes;
  }
  return { header, dataBytes: position };
}

/** A well-formed file with zero-filled tensors. */
export function buildSafetensors(tensors: Record<string, BuiltTensor>): Uint8Array {
  const { header, dataBytes } = layout(tensors);
  return rawSafetensors(JSON.stringify(header), dataBytes);
}
