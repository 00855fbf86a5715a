// Resize and normalisation against Pillow and the reference image processor: u8 arrays bit for bit (test/fixtures/preprocess).

import { describe, expect, it } from 'vitest';
import { Tensor, ops, scope } from '../lib/tensor/index.js';
import { expectDevices, testDevices } from './support/devices.js';
import { Goldens, expectNoLeaks, readJson } from './support/fixtures.js';

expectDevices();

interface Preprocess {
  mean: [number, number, number];
  std: [number, number, number];
  rescale_factor: number;
  cases: { prefix: string; note: string }[];
}

const fixture = readJson<Preprocess>('preprocess', 'expected.json');
const goldens = new Goldens('preprocess', 'expected.safetensors');
// one large image is stored without its decoded pixels: it is tested from the file, in image.test.ts
const cases = fixture.cases.filter((c) => goldens.names.includes(`${c.prefix}rgb`));

describe.each(testDevices)('on %s', (device) => {
  expectNoLeaks();

  const pixels = (prefix: string): Tensor => {
    const { shape, data } = goldens.get(`${prefix}rgb`);
    return Tensor.fromArray(data as Uint8Array, shape, { device });
  };

  describe.each([56, 224])('at %d px', (size) => {
    const resized = cases.filter((c) => goldens.names.includes(`${c.prefix}resized_${size}`));
    it('has cases', () => expect(resized.length).toBeGreaterThan(20));

    it.each(resized)('$prefix resizes to the very pixels of Pillow ($note)', ({ prefix }) =>
      scope(() => {
        const actual = ops.resizeBicubic(pixels(prefix), size, size).toArray();
        const expected = goldens.get(`${prefix}resized_${size}`).data as Uint8Array;
        expect(Buffer.compare(actual as Uint8Array, expected), 'differing pixels').toBe(0);
      }),
    );

    const normalised = cases.filter((c) => goldens.names.includes(`${c.prefix}pixel_values_${size}`));
    it.each(normalised)('$prefix normalises to the very floats of the reference', ({ prefix }) =>
      scope(() => {
        const image = ops.resizeBicubic(pixels(prefix), size, size);
        const values = ops.normalizeImage(image, {
          rescale: fixture.rescale_factor,
          mean: fixture.mean,
          std: fixture.std,
        });
        expect(values.shape).toEqual([3, size, size]);
        const expected = goldens.floats(`${prefix}pixel_values_${size}`);
        expect(
          Buffer.compare(Buffer.from(values.toFloat32().buffer), Buffer.from(expected.buffer)),
          'differing floats',
        ).toBe(0);
      }),
    );
  });

  it('resizes one pixel to any size, and anything to one pixel', () =>
    scope(() => {
      const dot = Tensor.fromArray(new Uint8Array([9, 200, 31]), [1, 1, 3], { device });
      expect([...new Set(ops.resizeBicubic(dot, 5, 7).transpose(0, 2).contiguous().select(0, 1).toArray())]).toEqual([
        200,
      ]);
      const flat = Tensor.fromArray(new Uint8Array(3 * 301 * 77).fill(128), [301, 77, 3], { device });
      expect([...ops.resizeBicubic(flat, 1, 1).toArray()]).toEqual([128, 128, 128]);
    }));

  it.each([
    [[0, 4, 3], 4],
    [[4, 4, 4], 4],
    [[4, 4], 4],
    [[4, 4, 3], 0],
    [[4, 4, 3], -1],
    [[4, 4, 3], 2 ** 31],
  ])('refuses shape %j resized to %d', (shape, size) =>
    scope(() => {
      const x = Tensor.fromArray(new Uint8Array(shape.reduce((a, b) => a * b, 1)), shape, { device });
      expect(() => ops.resizeBicubic(x, size, size)).toThrow(expect.objectContaining({ name: 'QFormerError' }));
    }),
  );
});
