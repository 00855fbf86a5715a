// The language models of the family inside their vision-language checkpoints, stage by stage against the reference, so that the
// first wrong layer is found and not only the wrong text. What the engine makes of them is in engine-fixtures.test.ts.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { placeImageTokens, type Blip2 } from '../lib/models/blip2.js';
import { Opt } from '../lib/models/opt.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, halfRuns, inF32, isChecked, sample, settled, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { greedy, idTensor, loadForTest, PagedSequences } from './support/models.js';
import { HIDDEN, LOGITS } from './support/tolerances.js';

expectDevices();

function inputsOn(device: string, goldens: Goldens, name: string): Tensor {
  const { shape } = goldens.get(`${name}.inputs_embeds`);
  return Tensor.fromArray(goldens.floats(`${name}.inputs_embeds`), shape.slice(1), { device });
}

describe.each(testDevices)('blip2-opt-tiny (three shards, a sparse config, a tied head) on %s', (device) => {
  const goldens = new Goldens('blip2-opt-tiny', 'expected.safetensors');
  let model: Blip2;
  let opt: Opt;

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('blip2-opt-tiny'), inF32(device));
    opt = model.languageModel as Opt;
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  const inputs = (name: string) => inputsOn(device, goldens, name);

  it('reports its sizes', () => {
    const { numLayers, numKvHeads, headDim, hiddenSize, vocabSize, maxPositions } = opt;
    expect({ numLayers, numKvHeads, headDim, hiddenSize, vocabSize, maxPositions }).toEqual({
      numLayers: 2,
      numKvHeads: 3,
      headDim: 40,
      hiddenSize: 120,
      vocabSize: 640,
      maxPositions: 160,
    });
    expect(opt.lmHead).toBe(opt.embedTokens.weight);
  });

  it.each(sample(device, ['c0', 'c1', 'c2', 'c3', 'c4', 'c5']))(
    'matches every stage of %s from pixels to greedy ids',
    (name) => {
      scope(() => {
        const pixels = Tensor.fromArray(goldens.floats(`${name}.pixel_values`), [1, 3, 56, 56], { device });
        const features = model.encodeImage(pixels);
        expectClose(features.toFloat32(), goldens.floats(`${name}.vision_last_hidden_state`), HIDDEN, 'vision');
        const projected = model.imageTokens(features, 1);
        expectClose(projected.toFloat32(), goldens.floats(`${name}.language_projection`), HIDDEN, 'projection');
        const placed = placeImageTokens(model.config, goldens.ids(`${name}.input_ids`), 1);
        const embeds = opt.embed(idTensor(placed.ids, device));
        ops.scatterRows(embeds, idTensor(placed.imageRows, device), projected);
        expectClose(embeds.toFloat32(), goldens.floats(`${name}.inputs_embeds`), HIDDEN, 'inputs_embeds');
        const tokens = isChecked(device) ? 6 : 24;
        const { promptLogits, ids } = greedy(opt, () => embeds, tokens, { eos: [202] });
        expectClose(promptLogits.slice(-640), goldens.floats(`${name}.first_step_logits`), LOGITS.f32, 'logits');
        expect(ids).toEqual(goldens.ids(`${name}.greedy_ids`).slice(0, tokens));
      });
    },
  );

  it.each(sample(device, ['c0', 'c2']))('has the hidden states of the reference after every layer of %s', (name) => {
    scope(() => {
      const expected = goldens.floats(`${name}.lm_hidden_states`);
      const embeds = inputs(name);
      const tokens = embeds.shape[0]!;
      const batch = new PagedSequences(opt, 1, tokens, { device }).next([tokens]);
      let x = opt.addPositions(embeds, batch.positions);
      for (let layer = 0; layer <= opt.layers.length; layer++) {
        const shown = layer === opt.layers.length ? opt.finalLayerNorm.forward(x) : x;
        const golden = expected.subarray(layer * tokens * 120, (layer + 1) * tokens * 120);
        expectClose(shown.toFloat32(), golden, HIDDEN, `OPT layer ${layer}`);
        if (layer < opt.layers.length) x = opt.layers[layer]!.forward(x, batch, layer);
      }
    });
  });

  it('has the logits of the reference at every position of the prompt', () => {
    const { promptLogits } = greedy(opt, () => inputs('c2'), 1);
    expectClose(promptLogits, goldens.floats('c2.lm_prompt_logits'), LOGITS.f32, 'prompt logits');
  });

  it.each(sample(device, [7, 1]))(
    'gives the same bits when the prompt is prefilled in pieces of %i tokens',
    (chunk) => {
      const whole = greedy(opt, () => inputs('c2'), 3);
      const pieces = greedy(opt, () => inputs('c2'), 3, { chunk });
      expectSameBits(pieces.promptLogits, whole.promptLogits);
      expect(pieces.ids).toEqual(whole.ids);
    },
  );

  it('refuses a position that the table does not have', () => {
    scope(() => {
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
      const add = () => opt.addPositions(inputs('c0').slice(0, 0, 1), idTensor([160], device));
      expect(() => settled(device, add)).toThrow(invalid);
    });
  });
});

describe.each(halfRuns)('blip2-opt-tiny on $device in $dtype', ({ device, dtype }) => {
  const goldens = new Goldens('blip2-opt-tiny', 'expected.safetensors');
  expectNoLeaks();

  it('has the logits of the reference after a prompt with image rows', async () => {
    const model = await loadForTest<Blip2>(fixturePath('blip2-opt-tiny'), { device, dtype });
    const embed = () => inputsOn(device, goldens, 'c2').cast(dtype);
    const { promptLogits } = greedy(model.languageModel, embed, 0);
    expectClose(promptLogits.slice(-640), goldens.floats('c2.first_step_logits'), LOGITS[dtype], 'logits');
    model.dispose();
  });
});

describe.each(testDevices)('OPT alone on %s', (device) => {
  const goldens = new Goldens('generated', 'opt-tiny', 'expected.safetensors');
  expectNoLeaks();

  it('is the model of a checkpoint whose model_type is opt; a stored copy of the tied head is left unread', async () => {
    const model = await loadForTest(fixturePath('generated/opt-tiny'), inF32(device));
    const { languageModel } = model;
    expect(languageModel).toBeInstanceOf(Opt);
    expect(model.encodeImage).toBeUndefined();
    const embed = () => languageModel.embed(idTensor(goldens.ids('input_ids'), device));
    const { promptLogits, ids } = greedy(languageModel, embed, 16, { eos: [2] });
    expectClose(promptLogits, goldens.floats('prompt_logits'), LOGITS.f32, 'prompt logits');
    expect(ids).toEqual(goldens.ids('greedy_ids'));
    model.dispose();
  });
});
