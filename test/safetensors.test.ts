// The safetensors header reader: honest files, and one test per way in which a file can lie.

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';

import { isQFormerError } from '../lib/errors.js';
import { MAX_HEADER_BYTES, parseSafetensorsHeader, readSafetensorsHeader } from '../lib/io/safetensors.js';
import { expectError } from './support/expect-error.js';
import { propertyRuns } from './support/property-runs.js';
import { buildSafetensors, layout, rawSafetensors } from './support/safetensors-builder.js';

const folder = mkdtempSync(join(tmpdir(), 'qformer-safetensors-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const parse = (file: Uint8Array) => parseSafetensorsHeader(file, file.length, 'x.safetensors');
const entry = (shape: unknown, offsets: unknown, dtype: unknown = 'F32') => ({ dtype, shape, data_offsets: offsets });
const lie = (header: unknown, dataBytes: number) => () => parse(rawSafetensors(JSON.stringify(header), dataBytes));

describe('an honest safetensors file', () => {
  test('gives dtype, shape and absolute byte offset of every tensor in file order', () => {
    const file = buildSafetensors({
      'b.weight': { dtype: 'F16', shape: [7, 257], bytes: 3598 },
      'a.weight': { dtype: 'BF16', shape: [1], bytes: 2 },
    });
    const tensors = parse(file);
    expect([...tensors.keys()]).toEqual(['b.weight', 'a.weight']);
    expect(tensors.get('b.weight')).toEqual({
      name: 'b.weight',
      dtype: 'F16',
      shape: [7, 257],
      offset: file.length - 3600,
      bytes: 3598,
      file: 'x.safetensors',
    });
    expect(tensors.get('a.weight')!.offset).toBe(file.length - 2);
  });

  test('may hold scalars, empty tensors, metadata, padding and tensors in any header order', () => {
    const header = {
      late: entry([], [4, 8]),
      empty: entry([0, 3], [4, 4]),
      first: entry([4], [0, 4], 'U8'),
      __metadata__: { format: 'pt' },
    };
    const tensors = parse(rawSafetensors(`${JSON.stringify(header)}   `, 8));
    expect([...tensors.keys()]).toEqual(['first', 'empty', 'late']);
    expect(tensors.get('empty')!.bytes).toBe(0);
    expect(tensors.get('late')!.shape).toEqual([]);
  });

  test('may hold no tensor at all', () => expect(parse(rawSafetensors('{}', 0)).size).toBe(0));

  test('may name tensors like members of Object.prototype', () => {
    const header = `{"__proto__":${JSON.stringify(entry([1], [0, 4]))},"constructor":${JSON.stringify(entry([1], [4, 8]))}}`;
    const tensors = parse(rawSafetensors(header, 8));
    expect([...tensors.keys()]).toEqual(['__proto__', 'constructor']);
    expect(({} as Record<string, unknown>)['dtype']).toBeUndefined();
  });

  test('of a real checkpoint is read from its header alone', () => {
    const file = new URL('./fixtures/instructblip-vicuna-tiny/model.safetensors', import.meta.url).pathname;
    const tensors = readSafetensorsHeader(file);
    const query = tensors.get('query_tokens')!;
    expect([tensors.size, query.dtype, query.shape]).toEqual([187, 'F16', [1, 8, 64]]);
    const last = [...tensors.values()].at(-1)!;
    expect(last.offset + last.bytes).toBe(readFileSync(file).length);
  });
});

describe('a lying safetensors file', () => {
  test.each([0, 1, 7])('of %i bytes is too short', (size) => {
    expectError(() => parse(new Uint8Array(size)), 'FORMAT', 'too short');
  });

  test.each([
    ['more than the limit', BigInt(MAX_HEADER_BYTES) + 1n, 'limit'],
    ['2^64 - 1', 2n ** 64n - 1n, 'limit'],
    ['more than the file', 11n, 'truncated'],
    ['zero', 0n, 'too short'],
  ])('with a header length of %s is refused before anything is allocated', (_name, length, message) => {
    expectError(() => parse(rawSafetensors('{}        ', 0, length)), 'FORMAT', message);
  });

  test('with a prefix shorter than the header is refused', () => {
    const file = buildSafetensors({ a: { dtype: 'F32', shape: [1], bytes: 4 } });
    expectError(() => parseSafetensorsHeader(file.subarray(0, 20), file.length, 'x'), 'FORMAT', 'only 12 were given');
  });

  test.each(['[]', '12', '"a"', 'null', '{"a":', ' {}', '{}x', '{"a":NaN}', '\ufeff{}'])(
    'with the header %s is refused',
    (header) => {
      expectError(() => parse(rawSafetensors(header, 0)), 'FORMAT', 'header');
    },
  );

  test('with a header that is not UTF-8 is refused', () => {
    expectError(() => parse(rawSafetensors(new Uint8Array([0x7b, 0xff, 0x7d]), 0)), 'FORMAT', 'UTF-8');
  });

  test.each([
    ['a tensor', '{"a":1,"a":2}', /tensor 'a' is named twice/],
    ['an escaped tensor name', '{"a":1,"\\u0061":2}', /tensor 'a' is named twice/],
    ['a key', '{"a":{"dtype":"F32","shape":[],"shape":[1]}}', /key 'shape' is named twice/],
  ])('that names %s twice is refused', (_name, header, message) => {
    expectError(() => parse(rawSafetensors(header, 4)), 'FORMAT', message);
  });

  test('with deeply nested JSON is refused', () => {
    const header = `{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`;
    expectError(() => parse(rawSafetensors(header, 0)), 'FORMAT', /nested|JSON/);
  });

  test.each([
    ['an entry that is no object', { w: [1] }, 0, /tensor 'w': must be an object/],
    ['a null entry', { w: null }, 0, /tensor 'w': must be an object, got null/],
    ['an unknown key', { w: { ...entry([1], [0, 4]), x: 1 } }, 4, /unknown key 'x'/],
    ['no dtype', { w: { shape: [1], data_offsets: [0, 4] } }, 4, /unknown dtype undefined/],
    ['an unknown dtype', { w: entry([1], [0, 4], 'F33') }, 4, /unknown dtype 'F33'/],
    ['a dtype named like a prototype member', { w: entry([1], [0, 4], 'constructor') }, 4, /unknown dtype/],
    ['a dtype that is no string', { w: entry([1], [0, 4], ['F32']) }, 4, /unknown dtype/],
    ['no shape', { w: { dtype: 'F32', data_offsets: [0, 4] } }, 4, /shape must be a list/],
    ['a negative size', { w: entry([-1], [0, 4]) }, 4, /size -1/],
    ['a fractional size', { w: entry([1.5], [0, 6]) }, 6, /size 1.5/],
    ['a size of text', { w: entry(['1'], [0, 4]) }, 4, /size '1'/],
    ['a size above 2^53', { w: entry([2 ** 53], [0, 4]) }, 4, /size 9007199254740992/],
    ['a product above 2^53', { w: entry([2 ** 30, 2 ** 30], [0, 4]) }, 4, /too large/],
    ['a product above 2^53 times zero', { w: entry([2 ** 40, 2 ** 40, 0], [0, 0]) }, 0, /too large/],
    ['a hundred dimensions', { w: entry(Array(100).fill(1), [0, 4]) }, 4, /100 dimensions/],
    ['no offsets', { w: { dtype: 'F32', shape: [1] } }, 4, /data_offsets must be two whole numbers/],
    ['three offsets', { w: entry([1], [0, 2, 4]) }, 4, /data_offsets must be two/],
    ['a negative offset', { w: entry([1], [-4, 0]) }, 4, /data_offsets must be two.*-4/],
    ['a fractional offset', { w: entry([1], [0.5, 4.5]) }, 5, /data_offsets must be two/],
    ['an offset above 2^53', { w: entry([1], [2 ** 60, 2 ** 60]) }, 4, /data_offsets must be two/],
    ['offsets that run backwards', { w: entry([1], [4, 0]) }, 4, /run backwards/],
    ['offsets beyond the file', { w: entry([2], [0, 8]) }, 7, /beyond the 7 data bytes/],
    ['a shape larger than its bytes', { w: entry([2], [0, 4]) }, 4, /takes 8 bytes, but data_offsets span 4/],
    ['a shape smaller than its bytes', { w: entry([1], [0, 8]) }, 8, /takes 4 bytes, but data_offsets span 8/],
    [
      'an overlap',
      { v: entry([2], [0, 8]), w: entry([2], [4, 12]) },
      12,
      /tensor 'w': overlaps the tensor before it by 4/,
    ],
    ['the same bytes twice', { v: entry([1], [0, 4]), w: entry([1], [0, 4]) }, 4, /overlaps/],
    ['an empty tensor inside another', { v: entry([2], [0, 8]), w: entry([0], [4, 4]) }, 8, /overlaps/],
    [
      'a hole',
      { v: entry([1], [0, 4]), w: entry([1], [8, 12]) },
      12,
      /tensor 'w': 4 bytes before it belong to no tensor/,
    ],
    ['a hole at the beginning', { w: entry([1], [4, 8]) }, 8, /4 bytes before it/],
    ['trailing bytes', { w: entry([1], [0, 4]) }, 5, /1 bytes at the end/],
    ['metadata that is no object', { __metadata__: 'pt' }, 0, /__metadata__ must be an object/],
    ['metadata that is no string', { __metadata__: { a: 1 } }, 0, /__metadata__.a must be a string/],
  ])('with %s is refused', (_name, header, dataBytes, message) => {
    expect(expectError(lie(header, dataBytes), 'FORMAT', message).message).toContain('x.safetensors');
  });

  test("names the tensor in the error's details", () => {
    const error = expectError(lie({ 'model.norm.weight': entry([2], [0, 4]) }, 4), 'FORMAT', 'model.norm.weight');
    expect(error.details).toEqual({ file: 'x.safetensors', tensor: 'model.norm.weight' });
  });

  test('with a dtype that exists but is not read is UNSUPPORTED', () => {
    expectError(lie({ w: entry([4], [0, 4], 'F8_E4M3') }, 4), 'UNSUPPORTED', /tensor 'w': dtype F8_E4M3/);
  });
});

describe('a path that is no readable file', () => {
  test('that does not exist is an IO error', () => {
    expectError(() => readSafetensorsHeader(join(folder, 'absent')), 'IO', /absent: no such file/);
  });
  test('that is a directory is an IO error', () => {
    mkdirSync(join(folder, 'dir.safetensors'));
    expectError(() => readSafetensorsHeader(join(folder, 'dir.safetensors')), 'IO', 'is a directory');
  });
  test('that is a named pipe is an IO error and does not block', () => {
    const pipe = join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    expectError(() => readSafetensorsHeader(pipe), 'IO', 'not a regular file');
  });
  test('with a NUL character is an invalid argument', () => {
    expectError(() => readSafetensorsHeader('a\0b'), 'INVALID_ARGUMENT', 'NUL');
  });
  test.each([0, 5, 8, 30])('cut after %i bytes is a FORMAT error that names it', (size) => {
    const path = join(folder, 'cut.safetensors');
    writeFileSync(path, buildSafetensors({ a: { dtype: 'F32', shape: [64], bytes: 256 } }).subarray(0, size));
    expectError(() => readSafetensorsHeader(path), 'FORMAT', path);
  });
});

describe('for arbitrary input', () => {
  const dtypes = fc.constantFrom(
    ['F64', 8],
    ['F32', 4],
    ['F16', 2],
    ['BF16', 2],
    ['I64', 8],
    ['BOOL', 1],
  ) as fc.Arbitrary<[string, number]>;
  const tensors = fc
    .dictionary(
      fc.string({ maxLength: 12 }).filter((name) => name !== '__metadata__'),
      fc.tuple(dtypes, fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 4 })),
      { maxKeys: 8 },
    )
    .map((entries) =>
      Object.fromEntries(
        Object.entries(entries).map(([name, [[dtype, size], shape]]) => [
          name,
          { dtype, shape, bytes: shape.reduce((a, b) => a * b, size) },
        ]),
      ),
    );

  test('what was written is what is read', () => {
    fc.assert(
      fc.property(tensors, (built) => {
        const file = buildSafetensors(built);
        const read = parse(file);
        expect(read.size).toBe(Object.keys(built).length);
        for (const [name, { dtype, shape, bytes }] of Object.entries(built))
          expect(read.get(name)).toMatchObject({ dtype, shape, bytes });
      }),
      propertyRuns(300),
    );
  });

  test('a damaged file is refused with FORMAT or UNSUPPORTED, or still describes bytes inside the file', () => {
    const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(tensors, damage, fc.integer({ min: -9, max: 9 }), (built, edits, grow) => {
        const { header, dataBytes } = layout(built);
        const file = rawSafetensors(JSON.stringify(header), Math.max(0, dataBytes + grow));
        for (const [position, value] of edits) file[position % file.length] = value;
        checkSound(file);
      }),
      propertyRuns(2000),
    );
  });

  test('random JSON as a header is refused or sound', () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 4 }), fc.nat(16), (json, dataBytes) =>
        checkSound(rawSafetensors(json, dataBytes)),
      ),
      propertyRuns(2000),
    );
  });

  function checkSound(file: Uint8Array): void {
    let read;
    try {
      read = parse(file);
    } catch (error) {
      if (!isQFormerError(error) || (error.code !== 'FORMAT' && error.code !== 'UNSUPPORTED')) throw error;
      return;
    }
    const total = [...read.values()].reduce((sum, { bytes }) => sum + bytes, 0);
    for (const { offset, bytes } of read.values()) {
      expect(offset).toBeGreaterThanOrEqual(10);
      expect(offset + bytes).toBeLessThanOrEqual(file.length);
    }
    expect(total).toBeLessThanOrEqual(file.length - 10);
  }
});
