// The retrieval model stage by stage against the reference, on every device and in every dtype it computes in; one text or
// many, one image or many, give the same bits.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import { isRetrievalCheckpoint, openRetrievalCheckpoint } from '../lib/io/retrieval-checkpoint.js';
import { RetrievalModel } from '../lib/models/retrieval.js';
import { Weights } from '../lib/models/weights.js';
import { scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, runs, sample } from './support/devices.js';
import { expectError } from './support/expect-error.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { withEditedCheckpoint } from './support/models.js';

expectDevices();

const ITM = 'blip2-itm-tiny';
const goldens = new Goldens(ITM, 'expected.safetensors');
const texts = [0, 1, 2].map((i) => {
  const mask = goldens.ids('text_mask').slice(10 * i, 10 * i + 10);
  return goldens
    .ids('text_ids')
    .slice(10 * i, 10 * i + 10)
    .filter((_, at) => mask[at] === 1);
});
// In 16 bits: unit vectors and probabilities of order 1, logits up to about 3.
const TOLERANCE = { f32: 1e-4, f16: 1e-2, bf16: 6e-2 };

async function load(device: string, dtype: 'auto' | 'f32' | 'f16' | 'bf16'): Promise<RetrievalModel> {
  const checkpoint = openRetrievalCheckpoint(fixturePath(ITM));
  const weights = new Weights(checkpoint, { device, dtype });
  const model = new RetrievalModel(weights, checkpoint.config, () => weights.dispose());
  await weights.load();
  return model;
}

/** Means over each text's query rows: [texts, 2]. */
function logitsOf(scores: Float32Array, numQuery: number): number[] {
  const logits = new Array<number>(scores.length / numQuery).fill(0);
  scores.forEach((score, i) => (logits[2 * Math.floor(i / (2 * numQuery)) + (i % 2)]! += score / numQuery));
  return logits;
}

describe.each(runs)('on $device in $dtype', ({ device, dtype }) => {
  let model: RetrievalModel;
  beforeAll(async () => {
    model = await load(device, dtype);
  });
  afterAll(() => model.dispose());
  expectNoLeaks();
  const atol = TOLERANCE[dtype];
  const features = (image: number) => {
    const size = 3 * 56 * 56;
    const pixels = goldens.floats('pixel_values').subarray(image * size, (image + 1) * size);
    return model.encodeImage(Tensor.fromArray(pixels, [1, 3, 56, 56], { device }));
  };
  const allFeatures = () =>
    model.encodeImage(Tensor.fromArray(goldens.floats('pixel_values'), [3, 3, 56, 56], { device }));

  it('has the image and text vectors of the reference', () =>
    scope(() => {
      const images = model.imageVectors(allFeatures(), 3).toFloat32();
      expectClose(images, goldens.floats('itc.image_embeds'), { atol }, 'image vectors');
      expectClose(model.textVectors(texts).toFloat32(), goldens.floats('itc.text_embeds'), { atol }, 'text vectors');
    }));

  it('has the matching logits of the reference for every pair', () =>
    scope(() => {
      const pairs = [0, 1, 2].flatMap((image) => texts.map((text) => ({ image, text })));
      const scores = model.matchScores(
        allFeatures(),
        pairs.map(({ image }) => image),
        pairs.map(({ text }) => text),
      );
      expectClose(logitsOf(scores.toFloat32(), 8), goldens.floats('itm.logits'), { atol: 4 * atol }, 'logits');
    }));

  it('gives each image, text and pair the bits that it has alone', () =>
    scope(() => {
      const together = allFeatures();
      const images = model.imageVectors(together, 3).toFloat32();
      const vectors = model.textVectors(texts).toFloat32();
      const scores = model.matchScores(together, [2, 0, 2], texts).toFloat32();
      sample(device, [2, 0, 2]).forEach((image, i) => {
        const alone = features(image);
        expectSameBits(model.imageVectors(alone, 1).toFloat32(), images.slice(320 * image, 320 * image + 320));
        expectSameBits(model.textVectors([texts[i]!]).toFloat32(), vectors.slice(40 * i, 40 * i + 40));
        expectSameBits(model.matchScores(alone, [0], [texts[i]!]).toFloat32(), scores.slice(16 * i, 16 * i + 16));
      });
    }));
});

describe('a retrieval checkpoint', () => {
  it('is told apart by its architecture alone', () => {
    expect(isRetrievalCheckpoint(fixturePath(ITM))).toBe(true);
    expect(isRetrievalCheckpoint(fixturePath('instructblip-vicuna-tiny'))).toBe(false);
    expectError(() => openCheckpoint(fixturePath(ITM)), 'UNSUPPORTED', /image-text retrieval generates no text/);
  });

  it('has the sizes of its config.json', () => {
    const { config, preprocessor } = openRetrievalCheckpoint(fixturePath(ITM));
    expect(config).toMatchObject({ numQueryTokens: 8, projectionSize: 40, qformer: { useTextInput: true } });
    expect(preprocessor.imageSize).toBe(56);
  });

  it('without its matching head is refused by the name of the missing tensors', () =>
    withEditedCheckpoint(
      ITM,
      (header) => {
        header['itm_haed.bias'] = header['itm_head.bias']!;
        delete header['itm_head.bias'];
      },
      (dir) => {
        const checkpoint = openRetrievalCheckpoint(dir);
        const weights = new Weights(checkpoint, { device: 'cpu', dtype: 'auto' });
        const model = new RetrievalModel(weights, checkpoint.config, () => weights.dispose());
        expectError(() => weights.check(), 'FORMAT', /missing \(1\): itm_head\.bias[^]*itm_haed\.bias/);
        model.dispose();
      },
    ));
});
