// The vision tower against the reference, layer by layer and on every device, and its position interpolation against PyTorch's.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Blip2 } from '../lib/models/blip2.js';
import { resamplePositions } from '../lib/models/positions.js';
import type { VisionTransformer } from '../lib/models/vit.js';
import { runLayers } from '../lib/nn/sequences.js';
import { scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, inF32, sample, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { loadForTest } from './support/models.js';
import { HIDDEN } from './support/tolerances.js';

expectDevices();

function pixelsOn(device: string, goldens: Goldens, name: string): Tensor {
  return Tensor.fromArray(goldens.floats(name), goldens.get(name).shape, { device });
}

describe.each(testDevices)('the vision tower of InstructBLIP (head_dim 88) on %s', (device) => {
  const goldens = new Goldens('instructblip-vicuna-tiny', 'expected.safetensors');
  let model: Blip2;
  let vision: VisionTransformer;
  const pixels = (name: string) => pixelsOn(device, goldens, name);

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('instructblip-vicuna-tiny'), inF32(device));
    vision = model.visionModel;
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it('adds class token and positions to the patches as the reference does', () => {
    scope(() => {
      const x = vision.embeddings.forward(pixels('c0.pixel_values'));
      expectClose(x.toFloat32(), goldens.floats('c0.vision_embeddings'), HIDDEN, 'vision embeddings');
    });
  });

  it('has the hidden states of the reference after every layer', () => {
    scope(() => {
      const expected = goldens.floats('c0.vision_hidden_states');
      const x = vision.embeddings.forward(pixels('c0.pixel_values'));
      const cu = vision.sequences(1, x);
      const check = (h: Tensor, layer: number) => {
        const part = expected.subarray(layer * h.size, (layer + 1) * h.size);
        expectClose(h.toFloat32(), part, HIDDEN, `vision layer ${layer}`);
        return h;
      };
      check(x, 0);
      runLayers(x, vision.layers, (layer, h, i) => check(layer.forward(h, cu), i + 1));
    });
  });

  it.each(sample(device, ['batch', 'c0', 'c1', 'c2', 'c3']))('matches the last hidden state of %s', (name) => {
    scope(() => {
      const features = model.encodeImage(pixels(`${name}.pixel_values`));
      expectClose(features.toFloat32(), goldens.floats(`${name}.vision_last_hidden_state`), HIDDEN, `vision ${name}`);
    });
  });

  it('gives an image the same bits alone and in a batch', () => {
    scope(() => {
      const both = pixels('batch.pixel_values');
      const together = model.encodeImage(both).toFloat32();
      const [first, second] = [0, 1].map((i) => model.encodeImage(both.slice(0, i, i + 1)).toFloat32());
      expectSameBits(together, Float32Array.of(...first!, ...second!));
    });
  });

  it('refuses another image size unless asked to interpolate', () => {
    scope(() => {
      const large = Tensor.zeros([1, 3, 70, 56], { device });
      expect(() => model.encodeImage(large)).toThrow(
        expect.objectContaining({ code: 'SHAPE', message: expect.stringContaining('56×56 pixels, got 56×70') }),
      );
      expect(model.encodeImage(large, { interpolate: true }).shape).toEqual([1 + 5 * 4, 176]);
      vision.dispose();
    });
  });

  it.each([[[3, 56, 56]], [[1, 1, 56, 56]], [[1, 3, 13, 56]]])('refuses pixel values of shape %j', (shape) => {
    scope(() => {
      const encode = () => model.encodeImage(Tensor.zeros(shape, { device }), { interpolate: true });
      expect(encode).toThrow(expect.objectContaining({ code: 'SHAPE' }));
    });
  });
});

describe.each(testDevices)('the vision tower without qkv bias on %s', (device) => {
  const goldens = new Goldens('generated', 'blip2-llama-tiny', 'expected.safetensors');
  let model: Blip2;
  const pixels = (name: string) => pixelsOn(device, goldens, name);

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('generated', 'blip2-llama-tiny'), inF32(device));
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it('matches the reference at its own size', () => {
    scope(() => {
      const features = model.encodeImage(pixels('pixel_values'));
      expectClose(features.toFloat32(), goldens.floats('vision_last_hidden_state'), HIDDEN, 'vision');
    });
  });

  it('matches the reference on a larger, oblong image with interpolated positions', () => {
    scope(() => {
      const features = model.encodeImage(pixels('large_pixel_values'), { interpolate: true });
      expectClose(features.toFloat32(), goldens.floats('large_vision_last_hidden_state'), HIDDEN, 'interpolated');
      model.visionModel.dispose();
    });
  });
});

describe('resampling a position table', () => {
  const goldens = new Goldens('generated', 'positions.safetensors');
  const cases = goldens.names.filter((name) => name.endsWith('.table')).map((name) => name.slice(0, -'.table'.length));

  it.each(cases)('is PyTorch’s bicubic interpolation from a side of %s', (name) => {
    const [grid, rows, columns] = name.split(/[.x]/).map(Number) as [number, number, number];
    const dim = goldens.get(`${name}.table`).shape[1]!;
    const classRow = Float32Array.from({ length: dim }, (_, i) => 100 + i);
    const table = Float32Array.of(...classRow, ...goldens.floats(`${name}.table`));
    const resampled = resamplePositions(table, grid, rows, columns, dim);
    expectSameBits(resampled.subarray(0, dim), classRow);
    // eight products of values up to 4, rounded on either side
    expectClose(resampled.subarray(dim), goldens.floats(`${name}.scaled`), { atol: 5e-6 }, name);
  });

  it('leaves a table of the same grid as it is', () => {
    const table = Float32Array.from({ length: 10 * 3 }, (_, i) => Math.fround(Math.sin(i)));
    expectSameBits(resamplePositions(table, 3, 3, 3, 3), table);
  });
});
