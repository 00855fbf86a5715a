// Memory-mapped files: tensors in place, copies where alignment asks for it, and every wrong path or range refused.

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { MappedFile, ops, scope } from '../lib/tensor/index.js';
import { expectNoLeaks } from './support/fixtures.js';

const folder = mkdtempSync(join(tmpdir(), 'qformer-mapped-'));
afterAll(() => rmSync(folder, { recursive: true }));

function fileWith(name: string, bytes: Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

const floats = new Float32Array([1, 2, 3, 4]);

describe('a mapped file', () => {
  expectNoLeaks();

  it('gives tensors in place, aligned or not', () =>
    scope(() => {
      const bytes = new Uint8Array(3 + 16);
      bytes.set(new Uint8Array(floats.buffer), 3);
      const file = MappedFile.open(fileWith('odd.bin', bytes));
      expect(file.size).toBe(19);
      expect(file.tensor(3, [2, 2], 'f32').toArray()).toEqual(floats);
      expect([...file.readBytes(0, 3)]).toEqual([0, 0, 0]);
      file.close();
    }));

  it('stays mapped while a tensor of it lives', () =>
    scope(() => {
      const file = MappedFile.open(fileWith('kept.bin', new Uint8Array(floats.buffer)));
      const x = file.tensor(0, [4], 'f32');
      file.close();
      expect([...ops.affine(x, 2).toArray()]).toEqual([2, 4, 6, 8]);
    }));

  it('is read-only', () =>
    scope(() => {
      const file = MappedFile.open(fileWith('readonly.bin', new Uint8Array(floats.buffer)));
      const x = file.tensor(0, [4], 'f32');
      expect(() => x.write(floats)).toThrow(/read-only/);
      expect(() => x.copyFrom(x)).toThrow(/read-only/);
      file.close();
    }));

  it.each([
    [-4, [1]],
    [16, [1]],
    [0, [5]],
    [4, [4]],
    [2 ** 52, [1]],
    [0, [2 ** 31, 2 ** 31]],
  ])('refuses a tensor outside the file: offset %d, shape %j', (offset, shape) => {
    const file = MappedFile.open(fileWith('short.bin', new Uint8Array(floats.buffer)));
    expect(() => file.tensor(offset, shape, 'f32')).toThrow(expect.objectContaining({ name: 'QFormerError' }));
    file.close();
  });

  it('notices that the file shrank', () => {
    const path = fileWith('shrinking.bin', new Uint8Array(floats.buffer));
    const file = MappedFile.open(path);
    truncateSync(path, 4);
    expect(() => file.tensor(0, [4], 'f32')).toThrow(expect.objectContaining({ code: 'IO' }));
    file.close();
  });

  it.each([
    ['a missing path', () => join(folder, 'missing'), /No such file/],
    ['a directory', () => folder, /is a directory/],
    ['an empty file', () => fileWith('empty.bin', new Uint8Array(0)), /is empty/],
    ['a device', () => '/dev/zero', /not a regular file/],
  ])('refuses %s with IO', (_, path, message) => {
    const io = expect.objectContaining({ code: 'IO', message: expect.stringMatching(message) });
    expect(() => MappedFile.open(path())).toThrow(io);
  });

  it('throws STALE_TENSOR once closed', () => {
    const file = MappedFile.open(fileWith('closed.bin', new Uint8Array(4)));
    file.close();
    file.close();
    expect(() => file.size).toThrow(expect.objectContaining({ code: 'STALE_TENSOR' }));
  });
});
