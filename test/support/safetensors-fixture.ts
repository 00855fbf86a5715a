// Reads a fixture folder's expected.json and expected.safetensors (f32, i64, i32, u8) without the code under test.
import { readFileSync } from 'node:fs';

const ROOT = new URL('../fixtures/', import.meta.url);

export interface Fixture<Json> {
  json: Json;
  tensors: Map<string, number[]>;
}

/** The folder `name` under test/fixtures. */
export function readFixture<Json>(name: string): Fixture<Json> {
  const json = JSON.parse(readFileSync(new URL(`${name}/expected.json`, ROOT), 'utf8')) as Json;
  const bytes = readFileSync(new URL(`${name}/expected.safetensors`, ROOT));
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, number[]>();
  for (const [key, entry] of Object.entries(header)) {
    if (key === '__metadata__') continue;
    const [from, to] = entry.data_offsets;
    tensors.set(key, numbers(bytes.subarray(8 + headerLength + from, 8 + headerLength + to), entry.dtype));
  }
  return { json, tensors };
}

function numbers(bytes: Buffer, dtype: string): number[] {
  const aligned = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  switch (dtype) {
    case 'F32':
      return [...new Float32Array(aligned)];
    case 'I64':
      return [...new BigInt64Array(aligned)].map(Number);
    case 'I32':
      return [...new Int32Array(aligned)];
    case 'U8':
    case 'BOOL':
      return [...new Uint8Array(aligned)];
    default:
      return []; // half precision: not needed by these tests
  }
}
