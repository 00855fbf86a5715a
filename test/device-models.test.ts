// The reference models on every device and in every dtype it computes in. In f32 with the fixtures' own tolerances, stage by
// stage; in 16 bits with the fixtures' tolerances for half precision on the logits of the first step.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Blip2 } from '../lib/models/blip2.js';
import type { VisionLanguageModel } from '../lib/models/model.js';
import type { T5 } from '../lib/models/t5.js';
import { cuSeqlens } from '../lib/nn/sequences.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { activationDtypes, expectDevices, isEmulated, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { greedy, greedyEncoded, idTensor, loadForTest } from './support/models.js';

expectDevices();

const HIDDEN = { atol: 2e-4 };
const LOGITS = { f32: { atol: 1e-3 }, f16: { atol: 5e-2 }, bf16: { atol: 3e-1 } };

const runs = testDevices.flatMap((device) =>
  activationDtypes(device).map((dtype) => ({ device, dtype: dtype as 'f32' | 'f16' | 'bf16' })),
);

describe.each(runs)('on $device in $dtype', ({ device, dtype }) => {
  describe('instructblip-vicuna-tiny', () => {
    const goldens = new Goldens('instructblip-vicuna-tiny', 'expected.safetensors');
    let model: Blip2;
    beforeAll(async () => {
      model = await loadForTest<Blip2>(fixturePath('instructblip-vicuna-tiny'), { device, dtype });
    }, 120_000);
    afterAll(() => model.dispose());
    expectNoLeaks();

    const cases = isEmulated(device) ? ['c0'] : ['c0', 'c3'];
    it.each(cases)(
      'goes from the pixels of %s to the reference logits',
      (name) =>
        scope(() => {
          const pixels = Tensor.fromArray(goldens.floats(`${name}.pixel_values`), [1, 3, 56, 56], { device });
          const features = model.encodeImage(pixels);
          expect(features.dtype).toBe(dtype);
          const rows = model.imageTokens(features, 1, [goldens.ids(`${name}.qformer_input_ids`)]);
          expect(rows.dtype).toBe(dtype);
          if (dtype === 'f32') {
            expectClose(features.toFloat32(), goldens.floats(`${name}.vision_last_hidden_state`), HIDDEN, 'vision');
            expectClose(rows.toFloat32(), goldens.floats(`${name}.language_projection`), HIDDEN, 'projection');
          }
          const ids = goldens.ids(`${name}.input_ids`);
          const embeds = model.languageModel.embed(idTensor(ids, device));
          ops.scatterRows(embeds, idTensor(rowsOf(ids, rows.shape[0]!), device), rows);
          const { promptLogits } = greedy(model.languageModel, () => embeds, 0);
          const expected = goldens.floats(`${name}.first_step_logits`);
          expectClose(promptLogits.subarray(-expected.length), expected, LOGITS[dtype], 'logits');
        }),
      120_000,
    );
  });

  describe('blip2-opt-tiny', () => {
    const goldens = new Goldens('blip2-opt-tiny', 'expected.safetensors');
    let model: Blip2;
    beforeAll(async () => {
      model = await loadForTest<Blip2>(fixturePath('blip2-opt-tiny'), { device, dtype });
    }, 120_000);
    afterAll(() => model.dispose());
    expectNoLeaks();

    it('has the logits of the reference after a prompt with image rows, and continues it', () => {
      const { languageModel } = model;
      const [rows, hidden] = goldens.get('c2.inputs_embeds').shape.slice(1) as [number, number];
      const embed = () => Tensor.fromArray(goldens.floats('c2.inputs_embeds'), [rows, hidden], { device }).cast(dtype);
      const tokens = isEmulated(device) ? 3 : 24;
      const { promptLogits, ids } = greedy(languageModel, embed, tokens);
      const expected = goldens.floats('c2.first_step_logits');
      expectClose(promptLogits.subarray(-expected.length), expected, LOGITS[dtype], 'logits');
      if (dtype === 'f32') expect(ids).toEqual(goldens.ids('c2.greedy_ids').slice(0, tokens));
    }, 120_000);
  });

  describe('blip2-flant5-tiny', () => {
    const goldens = new Goldens('blip2-flant5-tiny', 'expected.safetensors');
    let model: Blip2;
    beforeAll(async () => {
      model = await loadForTest<Blip2>(fixturePath('blip2-flant5-tiny'), { device, dtype });
    }, 120_000);
    afterAll(() => model.dispose());
    expectNoLeaks();

    it('has the logits of the reference after an encoded prompt with image rows, and continues it', () => {
      scope(() => {
        const shape = goldens.get('c2.inputs_embeds').shape.slice(1);
        const inputs = Tensor.fromArray(goldens.floats('c2.inputs_embeds'), shape, { device }).cast(dtype);
        const tokens = isEmulated(device) ? 3 : 24;
        const { logits, ids } = greedyEncoded(model.languageModel, inputs, tokens);
        expectClose(logits[0]!, goldens.floats('c2.first_step_logits'), LOGITS[dtype], 'logits');
        if (dtype === 'f32') expect(ids).toEqual(goldens.ids('c2.greedy_ids').slice(0, tokens));
      });
    }, 120_000);

    it.runIf(dtype !== 'f32')(
      'carries residuals beyond the range of f16 without an infinity',
      () => {
        scope(() => {
          const { encoder } = model.languageModel as T5;
          const [block] = encoder.blocks;
          // what the last product of a feed-forward adds is far larger than 65504
          const wo = block!.feedForward.wo.weight.tensor;
          const original = wo.cast(dtype);
          wo.copyFrom(ops.affine(original, 3e4));
          const shape = goldens.get('c2.inputs_embeds').shape.slice(1);
          const inputs = Tensor.fromArray(goldens.floats('c2.inputs_embeds'), shape, { device }).cast(dtype);
          const x = block!.forward(inputs.cast('f32'), cuSeqlens([shape[0]!], device)).toFloat32();
          const { logits } = greedyEncoded(model.languageModel, inputs, 1);
          wo.copyFrom(original);
          expect(Math.max(...x.map(Math.abs))).toBeGreaterThan(65504);
          expect(logits[0]!.every(Number.isFinite)).toBe(true);
        });
      },
      120_000,
    );
  });

  describe('llama-gqa-tiny', () => {
    const goldens = new Goldens('llama-gqa-tiny', 'expected.safetensors');
    let model: VisionLanguageModel;
    beforeAll(async () => {
      model = await loadForTest(fixturePath('llama-gqa-tiny'), { device, dtype });
    }, 120_000);
    afterAll(() => model.dispose());
    expectNoLeaks();
    const embed = (name: string) => () => model.languageModel.embed(idTensor(goldens.ids(`${name}.input_ids`), device));

    it.each(['short0', 'short1'])(
      'has the logits of the reference after the prompt %s, whole and in chunks',
      (name) => {
        const expected = goldens.floats(`${name}.first_step_logits`);
        const whole = greedy(model.languageModel, embed(name), 0).promptLogits;
        expectClose(whole.subarray(-expected.length), expected, LOGITS[dtype], 'logits');
        const chunked = greedy(model.languageModel, embed(name), 0, { chunk: 4 }).promptLogits;
        expectClose(chunked.subarray(-expected.length), expected, LOGITS[dtype], 'logits of a chunked prompt');
        // up to 16 rows take the same kernels whatever their number
        expectSameBits(chunked, whole, 'chunks');
      },
      120_000,
    );

    it.runIf(dtype === 'f32')(
      'continues a prompt as the reference does',
      () => {
        const expected = goldens.ids('short0.greedy_ids');
        const tokens = isEmulated(device) ? 6 : expected.length;
        const { ids } = greedy(model.languageModel, embed('short0'), tokens, { eos: [2] });
        expect(ids).toEqual(expected.slice(0, tokens));
      },
      120_000,
    );
  });
});

/** Places of the image rows in a prompt: those of the placeholder, its commonest id. */
function rowsOf(ids: readonly number[], count: number): number[] {
  const placeholder = ids.find((id) => ids.filter((other) => other === id).length === count)!;
  return ids.flatMap((id, i) => (id === placeholder ? [i] : []));
}
