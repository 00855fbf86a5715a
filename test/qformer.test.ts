// The Q-Former against the reference: layer by layer, with instructions of different lengths packed together, under the
// three masks of its training objectives, with text alone and without any; on every device.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Checkpoint } from '../lib/io/checkpoint.js';
import type { ModelConfig } from '../lib/io/config.js';
import { readSafetensorsHeader } from '../lib/io/safetensors.js';
import type { Blip2 } from '../lib/models/blip2.js';
import { QFormer, type QFormerMask } from '../lib/models/qformer.js';
import { Weights } from '../lib/models/weights.js';
import { runLayers } from '../lib/nn/sequences.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, inF32, sample, settled, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { loadForTest } from './support/models.js';
import { HIDDEN } from './support/tolerances.js';

expectDevices();

function tensorOn(device: string, goldens: Goldens, name: string): Tensor {
  const { shape } = goldens.get(name);
  const rows = shape.slice(0, -1).reduce((a, b) => a * b, 1);
  return Tensor.fromArray(goldens.floats(name), [rows, shape.at(-1)!], { device });
}

describe.each(testDevices)('an instruction-aware Q-Former on %s', (device) => {
  const goldens = new Goldens('instructblip-vicuna-tiny', 'expected.safetensors');
  const [numQuery, dim] = [8, 64];
  let model: Blip2;
  const tensor = (name: string) => tensorOn(device, goldens, name);
  const queries = () => model.queryTokens.tensor.reshape([numQuery, dim]);

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('instructblip-vicuna-tiny'), inF32(device));
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it('has the hidden states of the reference after every layer', () => {
    scope(() => {
      const expected = goldens.floats('c0.qformer_hidden_states');
      const features = tensor('c0.vision_last_hidden_state');
      const text = [goldens.ids('c0.qformer_input_ids')];
      const input = model.qformer.embed({ queries: queries(), features, batch: 1, text });
      const check = (h: Tensor, layer: number) => {
        const part = expected.subarray(layer * h.size, (layer + 1) * h.size);
        expectClose(h.toFloat32(), part, HIDDEN, `Q-Former layer ${layer}`);
        return h;
      };
      check(input.hidden, 0);
      runLayers(input.hidden, model.qformer.layers, (layer, h, i) =>
        check(layer.forward(h, input.layout, input.imageKeys[i], 'itm'), i + 1),
      );
    });
  });

  it.each(sample(device, ['c0', 'c1', 'c2', 'c3']))('matches the last hidden state of %s, queries and text', (name) => {
    scope(() => {
      const features = tensor(`${name}.vision_last_hidden_state`);
      const text = [goldens.ids(`${name}.qformer_input_ids`)];
      const output = model.qformer.forward({ queries: queries(), features, batch: 1, text });
      const rows = Float32Array.of(...output.queries!.toFloat32(), ...output.text!.toFloat32());
      expectClose(rows, goldens.floats(`${name}.qformer_last_hidden_state`), HIDDEN, `Q-Former ${name}`);
    });
  });

  it('packs instructions of different lengths and matches the padded batch of the reference', () => {
    scope(() => {
      const features = tensor('batch.vision_last_hidden_state');
      const width = goldens.get('batch.qformer_input_ids').shape[1]!;
      const [ids, mask] = [goldens.ids('batch.qformer_input_ids'), goldens.ids('batch.qformer_attention_mask')];
      const text = [0, 1].map((row) => ids.filter((_, i) => Math.floor(i / width) === row && mask[i] === 1));
      expect(text[0]!.length).not.toBe(text[1]!.length);
      const output = model.qformer.forward({ queries: queries(), features, batch: 2, text });
      const expected = goldens.floats('batch.qformer_last_hidden_state');
      const queryRows = [0, 1].flatMap((row) => {
        const start = row * (numQuery + width) * dim;
        return [...expected.subarray(start, start + numQuery * dim)];
      });
      expectClose(output.queries!.toFloat32(), queryRows, HIDDEN, 'Q-Former batch');
    });
  });

  it('gives an image and its instruction the same bits alone and in a batch', () => {
    scope(() => {
      const features = tensor('batch.vision_last_hidden_state');
      const text = [goldens.ids('c0.qformer_input_ids'), goldens.ids('c1.qformer_input_ids'), []];
      const rows = features.shape[0]! / 2;
      const parts = [features.slice(0, 0, rows), features.slice(0, rows, 2 * rows), features.slice(0, 0, rows)];
      const alone = parts.map((part, i) => model.imageTokens(part, 1, [text[i]!]).toFloat32());
      const three = Tensor.fromArray(Float32Array.from(parts.flatMap((p) => [...p.toFloat32()])), [3 * rows, 176], {
        device,
      });
      const together = model.imageTokens(three, 3, text);
      expectSameBits(together.toFloat32(), Float32Array.from(alone.flatMap((values) => [...values])));
    });
  });

  it('refuses a text beyond its positions, saying how many fit', () => {
    scope(() => {
      const features = tensor('c0.vision_last_hidden_state');
      const read = (length: number) => model.imageTokens(features, 1, [new Array<number>(length).fill(5)]);
      expect(read(64).shape).toEqual([numQuery, 160]);
      expect(() => read(65)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', details: { tokens: 65, limit: 64 } }),
      );
    });
  });

  it('refuses a missing instruction, a wrong number of them and an id outside the vocabulary', () => {
    scope(() => {
      const features = tensor('c0.vision_last_hidden_state');
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
      expect(() => model.imageTokens(features, 1)).toThrow(invalid);
      expect(() => model.imageTokens(features, 1, [[5], [6]])).toThrow(invalid);
      expect(() => settled(device, () => model.imageTokens(features, 1, [[5, 721]]))).toThrow(invalid);
      expect(() => settled(device, () => model.imageTokens(features, 1, [[-1]]))).toThrow(invalid);
    });
  });

  it('refuses features that do not divide among the images or are of another width', () => {
    scope(() => {
      const shape = expect.objectContaining({ code: 'SHAPE' });
      expect(() => model.imageTokens(tensor('c0.vision_last_hidden_state'), 2, [[5], [6]])).toThrow(shape);
      expect(() => model.imageTokens(Tensor.zeros([17, 64], { device }), 1, [[5]])).toThrow(shape);
      expect(() => model.qformer.forward({ queries: queries(), batch: 1, text: [[5]] })).toThrow(shape);
    });
  });
});

describe.each(testDevices)('the masks of the three objectives on %s', (device) => {
  const goldens = new Goldens('generated', 'qformer-masks', 'expected.safetensors');
  const [numQuery, dim] = [4, 24];
  const text = [goldens.ids('input_ids')];
  const tensor = (name: string) => tensorOn(device, goldens, name);
  let weights: Weights;
  let qformer: QFormer;
  let queries: Tensor;

  beforeAll(async () => {
    const tensors = readSafetensorsHeader(fixturePath('generated', 'qformer-masks', 'model.safetensors'));
    const checkpoint: Checkpoint = { dir: 'qformer-masks', config: {} as ModelConfig, tensors } as Checkpoint;
    weights = new Weights(checkpoint, inF32(device));
    const queryTokens = weights.vector('query_tokens', [1, numQuery, dim]);
    const config = {
      hiddenSize: dim,
      numLayers: 3,
      numHeads: 3,
      intermediateSize: 40,
      crossAttentionFrequency: 2,
      encoderHiddenSize: 26,
      layerNormEps: 1e-12,
      maxPositionEmbeddings: 16,
      vocabSize: 31,
      hiddenAct: 'gelu' as const,
      useTextInput: true,
    };
    qformer = new QFormer(weights, 'qformer', config, 'instructblip');
    await weights.load();
    queries = queryTokens.tensor.reshape([numQuery, dim]);
  });
  afterAll(() => {
    queries.dispose();
    weights.dispose();
  });
  expectNoLeaks();

  it.each<QFormerMask>(['itc', 'itg', 'itm'])('%s matches the reference under its block mask', (mask) => {
    scope(() => {
      const output = qformer.forward({ queries, features: tensor('features'), batch: 1, text, mask });
      const rows = Float32Array.of(...output.queries!.toFloat32(), ...output.text!.toFloat32());
      expectClose(rows, goldens.floats(`${mask}_hidden_state`), HIDDEN, mask);
    });
  });

  it('text alone runs without cross-attention, and queries alone without text', () => {
    scope(() => {
      const alone = qformer.forward({ batch: 1, text });
      expect(alone.queries).toBeUndefined();
      expectClose(alone.text!.toFloat32(), goldens.floats('text_hidden_state'), HIDDEN, 'text alone');
      const features = tensor('features');
      const seeing = qformer.forward({ queries, features, batch: 1 });
      expect(seeing.text).toBeUndefined();
      expectClose(seeing.queries!.toFloat32(), goldens.floats('queries_hidden_state'), HIDDEN, 'queries alone');
    });
  });

  it('itc in one pass is the two passes it stands for, and the masks differ where they should', () => {
    scope(() => {
      const run = (mask: QFormerMask) =>
        qformer.forward({ queries, features: tensor('features'), batch: 1, text, mask });
      const [itc, itg, itm] = [run('itc'), run('itg'), run('itm')];
      expectSameBits(itc.text!.toFloat32(), qformer.forward({ batch: 1, text }).text!.toFloat32());
      // queries see no text in either, so they agree; in itm they do
      expectSameBits(itg.queries!.toFloat32(), itc.queries!.toFloat32());
      expect(itm.queries!.toFloat32()).not.toEqual(itc.queries!.toFloat32());
    });
  });

  it('refuses a batch of neither queries nor text', () => {
    expect(() => qformer.forward({ batch: 1 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => qformer.forward({ batch: 2, text: [[], []] })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe.each(testDevices)('a Q-Former without text on %s', (device) => {
  const goldens = new Goldens('generated', 'blip2-llama-tiny', 'expected.safetensors');
  let model: Blip2;
  const tensor = (name: string) => tensorOn(device, goldens, name);

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('generated', 'blip2-llama-tiny'), inF32(device));
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it('matches the reference on a batch of two images', () => {
    scope(() => {
      const queries = model.queryTokens.tensor.reshape([5, 24]);
      const features = tensor('vision_last_hidden_state');
      const output = model.qformer.forward({ queries, features, batch: 2 });
      expectClose(output.queries!.toFloat32(), goldens.floats('qformer_last_hidden_state'), HIDDEN, 'Q-Former');
      const projected = model.imageTokens(features, 2);
      expectClose(projected.toFloat32(), goldens.floats('language_projection'), HIDDEN, 'language projection');
    });
  });

  it('gives the same bits with its image-independent prefix computed before and in the pass', () => {
    scope(() => {
      const queries = model.queryTokens.tensor.reshape([5, 24]);
      const features = tensor('vision_last_hidden_state');
      const plain = model.qformer.forward({ queries, features, batch: 2 });
      const prefix = model.queryPrefix.tensor;
      const begun = model.qformer.forward({ queries, prefix, features, batch: 2 });
      expectSameBits(begun.queries!.toFloat32(), plain.queries!.toFloat32());
      expectSameBits(prefix.toFloat32(), model.qformer.prefix(queries).toFloat32());
      // an unused prefix would make the test pass too
      const other = model.qformer.forward({ queries, prefix: Tensor.zeros([5, 24], { device }), features, batch: 2 });
      expect(other.queries!.toFloat32()).not.toEqual(plain.queries!.toFloat32());
    });
  });

  it('gives every cross-attention the keys and values of a product of its own, bit for bit', () => {
    scope(() => {
      const file = new Goldens('generated', 'blip2-llama-tiny', 'model.safetensors');
      const features = tensor('vision_last_hidden_state');
      const queries = model.queryTokens.tensor.reshape([5, 24]);
      const { imageKeys } = model.qformer.embed({ queries, features, batch: 2 });
      expect(imageKeys.map((keys) => keys !== undefined)).toEqual(
        model.qformer.layers.map(({ crossattention }) => crossattention !== undefined),
      );
      imageKeys.forEach((keys, layer) => {
        if (keys === undefined) return;
        for (const [part, name] of [
          [keys.k, 'key'],
          [keys.v, 'value'],
        ] as const) {
          const prefix = `qformer.encoder.layer.${layer}.crossattention.attention.${name}`;
          const stored = (suffix: string) => {
            const { shape } = file.get(`${prefix}.${suffix}`);
            return Tensor.fromArray(file.floats(`${prefix}.${suffix}`), shape, { device });
          };
          const alone = ops.linear(features, stored('weight'), { bias: stored('bias') });
          expectSameBits(part.contiguous().toFloat32(), alone.toFloat32(), prefix);
        }
      });
    });
  });

  it('refuses text', () => {
    scope(() => {
      const features = tensor('vision_last_hidden_state');
      const read = () => model.imageTokens(features, 2, [[1], [2]]);
      expect(read).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('no text') }),
      );
    });
  });
});
