// T5 against the reference: encoder and decoder layer by layer, both feed-forwards, tied and separate heads, distances beyond
// the table, the whole chain from pixels to greedy ids, and equal bits however the decoder's tokens are cut into steps; on every
// device and in every dtype it computes in.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { placeImageTokens, type Blip2 } from '../lib/models/blip2.js';
import type { BatchInputs } from '../lib/models/model.js';
import type { T5 } from '../lib/models/t5.js';
import { cuSeqlens } from '../lib/nn/sequences.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, halfRuns, inF32, isChecked, sample, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { EncodedSequence, greedyEncoded, idTensor, loadForTest, withEditedCheckpoint } from './support/models.js';
import { HIDDEN, LOGITS } from './support/tolerances.js';

expectDevices();

const FIXTURES = ['blip2-flant5-tiny', 'instructblip-flant5-tiny'];

/** Golden rows without their batch axis. */
function rowsOn(device: string, goldens: Goldens, name: string): Tensor {
  const { shape } = goldens.get(name);
  return Tensor.fromArray(goldens.floats(name), shape.slice(1), { device });
}

const onDevices = FIXTURES.flatMap((fixture) => testDevices.map((device) => ({ fixture, device })));

describe.each(onDevices)('$fixture on $device', ({ fixture, device }) => {
  const goldens = new Goldens(fixture, 'expected.safetensors');
  const cases = ['c0', 'c1', 'c2', 'c3', 'c4', 'c5'].filter((name) => goldens.names.includes(`${name}.inputs_embeds`));
  let model: Blip2;
  let t5: T5;

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath(fixture), inF32(device));
    t5 = model.languageModel as T5;
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  const rows = (name: string) => rowsOn(device, goldens, name);

  it.each(sample(device, cases))('matches every stage of %s from pixels to greedy ids', (name) => {
    scope(() => {
      const pixels = Tensor.fromArray(goldens.floats(`${name}.pixel_values`), [1, 3, 56, 56], { device });
      const features = model.encodeImage(pixels);
      expectClose(features.toFloat32(), goldens.floats(`${name}.vision_last_hidden_state`), HIDDEN, 'vision');
      const instruction = `${name}.qformer_input_ids`;
      const instructions = goldens.names.includes(instruction) ? [goldens.ids(instruction)] : undefined;
      const projected = model.imageTokens(features, 1, instructions);
      expectClose(projected.toFloat32(), goldens.floats(`${name}.language_projection`), HIDDEN, 'projection');
      const placed = placeImageTokens(model.config, goldens.ids(`${name}.input_ids`), 1);
      const embeds = t5.embed(idTensor(placed.ids, device));
      ops.scatterRows(embeds, idTensor(placed.imageRows, device), projected);
      expectClose(embeds.toFloat32(), goldens.floats(`${name}.inputs_embeds`), HIDDEN, 'inputs_embeds');
      const encoded = t5.encoder.forward(embeds, cuSeqlens([embeds.shape[0]!], device)).toFloat32();
      expectClose(encoded, goldens.floats(`${name}.t5_encoder_last_hidden_state`), HIDDEN, 'encoder');
      const tokens = isChecked(device) ? 6 : 24;
      const { logits, ids } = greedyEncoded(t5, embeds, tokens, { eos: [1] });
      expectClose(logits[0]!, goldens.floats(`${name}.first_step_logits`), LOGITS.f32, 'first step logits');
      const steps = `${name}.greedy_step_logits`;
      if (goldens.names.includes(steps)) {
        const all = logits.flatMap((row) => [...row]);
        expectClose(all, goldens.floats(steps).subarray(0, all.length), LOGITS.f32, 'logits of every step');
      }
      expect(ids).toEqual(goldens.ids(`${name}.greedy_ids`).slice(0, tokens));
    });
  });

  it('has the hidden states of the reference after every layer of the encoder', () => {
    scope(() => {
      const expected = goldens.floats('c0.t5_encoder_hidden_states');
      let x = rows('c0.inputs_embeds');
      const [tokens, hidden] = x.shape as [number, number];
      const { blocks, finalLayerNorm } = t5.encoder;
      for (let layer = 0; layer <= blocks.length; layer++) {
        const shown = layer === blocks.length ? finalLayerNorm.forward(x) : x;
        const golden = expected.subarray(layer * tokens * hidden, (layer + 1) * tokens * hidden);
        expectClose(shown.toFloat32(), golden, HIDDEN, `encoder layer ${layer}`);
        if (layer < blocks.length) x = blocks[layer]!.forward(x, cuSeqlens([tokens], device));
      }
    });
  });

  it('gives inputs that are encoded together the bits they have alone', () => {
    scope(() => {
      const inputs = sample(device, cases, 2).map((name) => rows(`${name}.inputs_embeds`));
      const alone = inputs.map((x) => t5.encoder.forward(x, cuSeqlens([x.shape[0]!], device)).toFloat32());
      const lengths = inputs.map((x) => x.shape[0]!);
      const packed = inputs.flatMap((x) => [...x.toFloat32()]);
      const together = Tensor.fromArray(Float32Array.from(packed), [packed.length / t5.hiddenSize, t5.hiddenSize], {
        device,
      });
      const encoded = t5.encoder.forward(together, cuSeqlens(lengths, device)).toFloat32();
      let start = 0;
      alone.forEach((expected, i) => {
        const end = start + lengths[i]! * t5.hiddenSize;
        expectSameBits(encoded.slice(start, end), expected, `input ${i}`);
        start = end;
      });
    });
  });
});

const inHalf = FIXTURES.flatMap((fixture) => halfRuns.map((run) => ({ fixture, ...run })));

describe.each(inHalf)('$fixture on $device in $dtype', ({ fixture, device, dtype }) => {
  const goldens = new Goldens(fixture, 'expected.safetensors');
  let model: Blip2;
  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath(fixture), { device, dtype });
  });
  afterAll(() => model.dispose());
  expectNoLeaks();
  const inputs = () => rowsOn(device, goldens, 'c2.inputs_embeds').cast(dtype);

  it('has the logits of the reference after an encoded prompt with image rows', () => {
    scope(() => {
      const { logits } = greedyEncoded(model.languageModel, inputs(), 1);
      expectClose(logits[0]!, goldens.floats('c2.first_step_logits'), LOGITS[dtype], 'logits');
    });
  });

  it('carries residuals beyond the range of f16 without an infinity', () => {
    scope(() => {
      const [block] = (model.languageModel as T5).encoder.blocks;
      // what the last product of a feed-forward adds is far larger than 65504
      const wo = block!.feedForward.wo.weight.tensor;
      const original = wo.cast(dtype);
      wo.copyFrom(ops.affine(original, 3e4));
      const x = block!.forward(inputs().cast('f32'), cuSeqlens([inputs().shape[0]!], device)).toFloat32();
      const { logits } = greedyEncoded(model.languageModel, inputs(), 1);
      wo.copyFrom(original);
      expect(Math.max(...x.map(Math.abs))).toBeGreaterThan(65504);
      expect(logits[0]!.every(Number.isFinite)).toBe(true);
    });
  });
});

describe.each(testDevices)('t5-tiny (ungated, a tied head, 8 buckets of distances up to 12) on %s', (device) => {
  const goldens = new Goldens('generated', 't5-tiny', 'expected.safetensors');
  const TOKENS = 30;
  let dispose: () => void;
  let t5: T5;

  beforeAll(async () => {
    const model = await loadForTest(fixturePath('generated', 't5-tiny'), inF32(device));
    t5 = model.languageModel as T5;
    dispose = () => model.dispose();
  });
  afterAll(() => dispose());
  expectNoLeaks();

  const inputs = () => t5.embed(idTensor(goldens.ids('input_ids'), device));
  const decoded = (batch: BatchInputs, start: number, end: number): Tensor =>
    t5.forward(t5.embed(idTensor(goldens.ids('decoder_input_ids').slice(start, end), device)), batch);

  it('reports its sizes', () => {
    const { numLayers, numKvHeads, headDim, hiddenSize, vocabSize } = t5;
    expect({ numLayers, numKvHeads, headDim, hiddenSize, vocabSize }).toEqual({
      numLayers: 2,
      numKvHeads: 3,
      headDim: 10,
      hiddenSize: 24,
      vocabSize: 53,
    });
    expect(t5.encoder.blocks).toHaveLength(3);
    expect(t5.lmHead).toBe(t5.shared.weight);
  });

  it('has the hidden states of the reference after every layer of the decoder, and its logits', () => {
    scope(() => {
      const sequence = new EncodedSequence(t5, inputs(), TOKENS);
      const batch = sequence.next(TOKENS);
      const expected = goldens.floats('decoder_hidden_states');
      let x = t5.embed(idTensor(goldens.ids('decoder_input_ids'), device));
      for (let layer = 0; layer <= t5.numLayers; layer++) {
        const shown = layer === t5.numLayers ? t5.decoderFinalLayerNorm.forward(x) : x;
        const golden = expected.subarray(layer * TOKENS * 24, (layer + 1) * TOKENS * 24);
        expectClose(shown.toFloat32(), golden, HIDDEN, `decoder layer ${layer}`);
        if (layer < t5.numLayers) x = t5.decoderBlocks[layer]!.forward(x, batch, layer);
      }
      const logits = t5.logits(t5.decoderFinalLayerNorm.forward(x)).toFloat32();
      expectClose(logits, goldens.floats('logits'), LOGITS.f32, 'logits');
    });
  });

  it('continues greedily as the reference does, far past the longest distance of the table', () => {
    const { ids } = scope(() => greedyEncoded(t5, inputs(), TOKENS, { bans: [1] }));
    expect(ids).toEqual(goldens.ids('greedy_ids'));
  });

  it.each(sample(device, [7, 1]))('gives the same bits when the decoder takes its tokens in pieces of %i', (chunk) => {
    scope(() => {
      const whole = decoded(new EncodedSequence(t5, inputs(), TOKENS).next(TOKENS), 0, TOKENS).toFloat32();
      const sequence = new EncodedSequence(t5, inputs(), TOKENS);
      const pieces: number[] = [];
      for (let start = 0; start < TOKENS; start += chunk) {
        const end = Math.min(start + chunk, TOKENS);
        pieces.push(...scope(() => decoded(sequence.next(end - start), start, end).toFloat32()));
      }
      expectSameBits(Float32Array.from(pieces), whole);
    });
  });

  it.each(['encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'])(
    'finds its embeddings under the name %s as well',
    async (alias) => {
      await withEditedCheckpoint(
        'generated/t5-tiny',
        (header) => {
          header[alias] = header['shared.weight']!;
          delete header['shared.weight'];
        },
        async (dir) => {
          const model = await loadForTest(dir, inF32(device));
          const renamed = model.languageModel as T5;
          scope(() => {
            const ids = idTensor(goldens.ids('input_ids'), device);
            expectSameBits(renamed.embed(ids).toFloat32(), t5.embed(ids).toFloat32());
          });
          model.dispose();
        },
      );
    },
  );
});
