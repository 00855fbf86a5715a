// Reads golden tensors in plain JavaScript, so that a test's expectation never passes through the code under test, and
// compares against them with a message that says where the worst element is.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect } from 'vitest';
import { liveTensors } from '../../lib/tensor/index.js';

/** A golden tensor; f16 and bf16 are widened to f32, i64 to numbers, bool to 0 and 1. */
export interface Golden {
  shape: number[];
  data: Float32Array | Float64Array | Int32Array | Uint8Array;
}

/** The path of a file below test/fixtures. */
export function fixturePath(...parts: string[]): string {
  return fileURLToPath(new URL(`../fixtures/${parts.join('/')}`, import.meta.url));
}

/** A JSON file below test/fixtures. */
export function readJson<T = Record<string, unknown>>(...parts: string[]): T {
  return JSON.parse(readFileSync(fixturePath(...parts), 'utf8')) as T;
}

/** All tensors of a safetensors file below test/fixtures, by name; asking for an unknown name throws. */
export class Goldens {
  readonly #header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  readonly #data: Uint8Array;

  constructor(...parts: string[]) {
    const file = readFileSync(fixturePath(...parts));
    const length = Number(file.readBigUInt64LE(0));
    this.#header = JSON.parse(file.toString('utf8', 8, 8 + length));
    this.#data = file.subarray(8 + length);
  }

  get names(): string[] {
    return Object.keys(this.#header).filter((name) => name !== '__metadata__');
  }

  get(name: string): Golden {
    const entry = this.#header[name];
    if (entry === undefined) throw new Error(`no golden tensor ${name}`);
    // a copy is aligned for any element type
    const bytes = this.#data.slice(...entry.data_offsets);
    return {
      shape: entry.shape,
      data: decode(entry.dtype, bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)),
    };
  }

  /** An f32 tensor. */
  floats(name: string): Float32Array {
    return Float32Array.from(this.get(name).data);
  }

  /** An integer tensor as numbers. */
  ids(name: string): number[] {
    return [...this.get(name).data];
  }
}

function decode(dtype: string, buffer: ArrayBuffer): Golden['data'] {
  switch (dtype) {
    case 'F32':
      return new Float32Array(buffer);
    case 'F64':
      return new Float64Array(buffer);
    case 'F16':
      return Float32Array.from(new Uint16Array(buffer), halfToFloat);
    case 'BF16':
      return new Float32Array(Uint32Array.from(new Uint16Array(buffer), (bits) => bits * 65536).buffer);
    case 'I64':
      return Int32Array.from(new BigInt64Array(buffer), Number);
    case 'I32':
      return new Int32Array(buffer);
    case 'U8':
    case 'BOOL':
      return new Uint8Array(buffer);
    default:
      throw new Error(`golden dtype ${dtype}`);
  }
}

function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Allowed distance of an element: |actual − expected| ≤ atol + rtol · |expected|. */
export interface Tolerance {
  atol?: number;
  rtol?: number;
}

/** Asserts closeness, naming the worst element; a NaN is never close. Returns the largest absolute difference. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { atol = 0, rtol = 0 }: Tolerance,
  what = 'values',
): number {
  expect(actual.length, `${what}: number of elements`).toBe(expected.length);
  let worst = -1;
  let worstExcess = 0;
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    const excess = difference - (atol + rtol * Math.abs(expected[i]!));
    largest = Math.max(largest, difference);
    if (!(excess <= worstExcess)) {
      worst = i;
      worstExcess = Number.isNaN(excess) ? Infinity : excess;
    }
  }
  if (worst >= 0) {
    const allowed = `allowed ${atol} + ${rtol}·|expected|`;
    expect.fail(`${what}: worst at ${worst}: got ${actual[worst]}, expected ${expected[worst]} (${allowed})`);
  }
  if (process.env.QFORMER_SHOW_ERRORS) console.log(`${what}: max |difference| ${largest.toExponential(2)}`);
  return largest;
}

/** Asserts equality bit by bit, naming the first element that differs (−0 differs from 0, a NaN equals itself). */
export function expectSameBits(actual: Float32Array, expected: Float32Array, what = 'values'): void {
  expect(actual.length, `${what}: number of elements`).toBe(expected.length);
  const at = actual.findIndex((value, i) => !Object.is(value, expected[i]));
  if (at >= 0) expect.fail(`${what}: differ at ${at}: got ${actual[at]}, expected ${expected[at]}`);
}

/** Makes every test of the calling suite fail that leaves a tensor alive. */
export function expectNoLeaks(): void {
  let before = 0;
  beforeEach(() => {
    before = liveTensors();
  });
  afterEach(() => {
    expect(liveTensors(), 'live tensors after the test').toBe(before);
  });
}
