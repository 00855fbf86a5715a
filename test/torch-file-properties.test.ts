// PyTorch's .bin files by property: whatever a file says, it is refused or describes bytes inside itself, each of them once.

import type { Buffer } from 'node:buffer';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';

import { isQFormerError } from '../lib/errors.js';
import type { TensorEntry } from '../lib/io/safetensors.js';
import { readTorchFile } from '../lib/io/torch-file.js';
import { propertyRuns } from './support/property-runs.js';
import { dictPickle, rowMajor, tensorPickle, torchFile } from './support/torch-file-builder.js';

const folder = mkdtempSync(join(tmpdir(), 'qformer-torch-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function read(bytes: Uint8Array): Map<string, TensorEntry> {
  const file = join(folder, 'x.bin');
  writeFileSync(file, bytes);
  return readTorchFile(file);
}

describe('any file', () => {
  const types: [string, number][] = [
    ['FloatStorage', 4],
    ['HalfStorage', 2],
    ['LongStorage', 8],
    ['BoolStorage', 1],
  ];
  const tensors = fc.dictionary(
    fc.string({ maxLength: 12 }).filter((name) => name !== '__proto__'),
    fc.tuple(fc.constantFrom(...types), fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }), fc.nat(3)),
    { maxKeys: 5, minKeys: 1 },
  );
  const build = (spec: Record<string, [[string, number], number[], number]>): Buffer => {
    const storages: Record<string, number> = {};
    const values = Object.entries(spec).map(([name, [[storage, size], shape, offset]], i) => {
      const elements = shape.reduce((a, b) => a * b, 1) + offset;
      storages[i] = elements * size;
      return [
        name,
        tensorPickle({ storage, key: String(i), elements, offset, shape, stride: rowMajor(shape) }),
      ] as const;
    });
    return torchFile(dictPickle(Object.fromEntries(values)), storages);
  };

  test('is read as it was written', () => {
    fc.assert(
      fc.property(tensors, (spec) => {
        const entries = read(build(spec));
        expect(entries.size).toBe(Object.keys(spec).length);
        for (const [name, [[, size], shape]] of Object.entries(spec)) {
          expect(entries.get(name)).toMatchObject({ shape, bytes: shape.reduce((a, b) => a * b, size) });
        }
      }),
      propertyRuns(100),
    );
  });

  test('whose tensors have any strides is refused, or reads each place of its part once', () => {
    const axes = fc.array(fc.tuple(fc.nat(4), fc.nat(13)), { minLength: 1, maxLength: 4 });
    let accepted = 0;
    fc.assert(
      fc.property(axes, fc.nat(3), (sizes, offset) => {
        const [shape, stride] = [sizes.map(([size]) => size), sizes.map(([, step]) => step)];
        const tensor = { elements: 60, offset, shape, stride };
        let entry: TensorEntry;
        try {
          entry = read(torchFile(dictPickle({ a: tensorPickle(tensor) }), { 0: 240 })).get('a')!;
        } catch (error) {
          expect(isQFormerError(error) && ['FORMAT', 'UNSUPPORTED'].includes(error.code)).toBe(true);
          return;
        }
        const places = shape.reduce<number[]>(
          (before, size, axis) =>
            before.flatMap((place) => Array.from({ length: size }, (_, i) => place + i * stride[axis]!)),
          [0],
        );
        expect(places.toSorted((a, b) => a - b)).toEqual(places.map((_, i) => i));
        expect(4 * places.length).toBe(entry.bytes);
        accepted++;
      }),
      propertyRuns(2000),
    );
    expect(accepted).toBeGreaterThan(10);
  });

  test('that was damaged is refused with FORMAT or UNSUPPORTED, or still describes bytes inside the file', () => {
    const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(tensors, damage, (spec, edits) => {
        const bytes = build(spec);
        for (const [position, value] of edits) bytes[position % bytes.length] = value;
        checkSound(bytes);
      }),
      propertyRuns(400),
    );
  });

  test('whose pickle is any bytes is refused or sound', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (pickle) => checkSound(torchFile(pickle, { 0: 8 }))),
      propertyRuns(400),
    );
  });

  function checkSound(bytes: Uint8Array): void {
    let entries;
    try {
      entries = read(bytes);
    } catch (error) {
      if (!isQFormerError(error) || (error.code !== 'FORMAT' && error.code !== 'UNSUPPORTED')) throw error;
      return;
    }
    for (const entry of entries.values()) expect(entry.offset + entry.bytes).toBeLessThanOrEqual(bytes.length);
  }
});
