// The whole chain from pixels to greedy ids against the reference, in the current and the legacy layout, for InstructBLIP
// and for BLIP-2 over a LLaMA; and how image rows find their place in a prompt.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Blip2 } from '../lib/models/blip2.js';
import { placeImageTokens } from '../lib/models/blip2.js';
import type { ModelConfig } from '../lib/io/config.js';
import type { Llama } from '../lib/models/llama.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, halfRuns, inF32, isChecked, sample, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, fixturePath, Goldens } from './support/fixtures.js';
import { greedy, idTensor, loadForTest, PagedSequences, withEditedCheckpoint } from './support/models.js';
import { HIDDEN, LOGITS } from './support/tolerances.js';

expectDevices();

/** The language model's input for one image: embeddings with the image rows in place. */
function promptEmbeds(model: Blip2, pixels: Tensor, ids: number[], instruction?: number[]): Tensor {
  return scope(() => {
    const imageTokens = model.imageTokens(model.encodeImage(pixels), 1, instruction && [instruction]);
    const placed = placeImageTokens(model.config, ids, 1);
    const embeds = model.languageModel.embed(idTensor(placed.ids, pixels.device));
    ops.scatterRows(embeds, idTensor(placed.imageRows, pixels.device), imageTokens);
    return embeds;
  });
}

function pixelsOn(device: string, goldens: Goldens, name: string): Tensor {
  const { shape } = goldens.get(`${name}.pixel_values`);
  return Tensor.fromArray(goldens.floats(`${name}.pixel_values`), shape, { device });
}

describe.each(testDevices)('InstructBLIP over LLaMA on %s', (device) => {
  const goldens = new Goldens('instructblip-vicuna-tiny', 'expected.safetensors');
  let model: Blip2;

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('instructblip-vicuna-tiny'), inF32(device));
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  const tokens = isChecked(device) ? 6 : 24;
  const pixels = (name: string) => pixelsOn(device, goldens, name);
  const embeds = (name: string) =>
    promptEmbeds(model, pixels(name), goldens.ids(`${name}.input_ids`), goldens.ids(`${name}.qformer_input_ids`));

  it.each(sample(device, ['c0', 'c1', 'c2', 'c3']))(
    'matches the reference at every stage of %s, from pixels to greedy ids',
    (name) => {
      scope(() => {
        const features = model.encodeImage(pixels(name));
        expectClose(features.toFloat32(), goldens.floats(`${name}.vision_last_hidden_state`), HIDDEN, `vision ${name}`);
        const projected = model.imageTokens(features, 1, [goldens.ids(`${name}.qformer_input_ids`)]);
        expectClose(projected.toFloat32(), goldens.floats(`${name}.language_projection`), HIDDEN, `projection ${name}`);
        expectClose(embeds(name).toFloat32(), goldens.floats(`${name}.inputs_embeds`), HIDDEN, `inputs_embeds ${name}`);
        const { promptLogits, ids } = greedy(model.languageModel, () => embeds(name), tokens, { eos: [2] });
        const vocab = model.languageModel.vocabSize;
        const firstStep = goldens.floats(`${name}.first_step_logits`);
        expectClose(promptLogits.slice(-vocab), firstStep, LOGITS.f32, `first step logits ${name}`);
        expect(ids).toEqual(untilEos(goldens.ids(`${name}.greedy_ids`), 2).slice(0, tokens));
      });
    },
  );

  it('has the language model’s hidden states and logits of the reference at every prompt position', () => {
    scope(() => {
      const llama = model.languageModel as Llama;
      const expected = goldens.floats('c0.lm_hidden_states');
      let x = embeds('c0');
      const batch = new PagedSequences(llama, 1, x.shape[0]!, { device }).next([x.shape[0]!]);
      llama.layers.forEach((layer, i) => {
        expectClose(x.toFloat32(), expected.subarray(i * x.size, (i + 1) * x.size), HIDDEN, `LM layer ${i}`);
        x = layer.forward(x, batch, i);
      });
      const last = llama.norm.forward(x);
      expectClose(last.toFloat32(), expected.subarray(llama.numLayers * x.size), HIDDEN, 'LM final norm');
      expectClose(llama.logits(last).toFloat32(), goldens.floats('c0.lm_prompt_logits'), LOGITS.f32, 'prompt logits');
    });
  });

  it('needs no placeholders in the prompt: image rows then stand in front, as the processor puts them', () => {
    const ids = goldens.ids('c0.input_ids').filter((id) => id !== model.config.imageTokenId);
    scope(() => {
      const merged = promptEmbeds(model, pixels('c0'), ids, goldens.ids('c0.qformer_input_ids'));
      expectClose(merged.toFloat32(), goldens.floats('c0.inputs_embeds'), HIDDEN, 'inputs_embeds');
    });
  });

  it('computes the same in the legacy layout, whose config names no image token', async () => {
    const text = goldens.ids('c1.input_ids').filter((id) => id !== 1001);
    const instruction = goldens.ids('c1.qformer_input_ids');
    await withEditedCheckpoint(
      'instructblip-vicuna-tiny',
      (_, config) => delete config.image_token_index,
      async (dir) => {
        const legacy = await loadForTest<Blip2>(dir, inF32(device));
        expect(legacy.config.imageTokenId).toBeUndefined();
        scope(() => {
          const merged = promptEmbeds(legacy, pixels('c1'), text, instruction);
          expectClose(merged.toFloat32(), goldens.floats('c1.inputs_embeds'), HIDDEN, 'inputs_embeds');
          const { ids } = greedy(legacy.languageModel, () => merged, tokens, { eos: [2] });
          expect(ids).toEqual(untilEos(goldens.ids('c1.greedy_ids'), 2).slice(0, tokens));
        });
        legacy.dispose();
      },
    );
  });
});

// On the CPU bf16 weights with activations rounded before each product, on a GPU activations in 16 bits throughout.
describe.each([{ device: 'cpu', dtype: 'bf16' as const }, ...halfRuns])(
  'InstructBLIP over LLaMA on $device in $dtype',
  ({ device, dtype }) => {
    const goldens = new Goldens('instructblip-vicuna-tiny', 'expected.safetensors');
    expectNoLeaks();

    it.each(sample(device, ['c0', 'c3']))('goes from the pixels of %s to the reference logits', async (name) => {
      const model = await loadForTest<Blip2>(fixturePath('instructblip-vicuna-tiny'), { device, dtype });
      scope(() => {
        const ids = goldens.ids(`${name}.input_ids`);
        const embed = () =>
          promptEmbeds(model, pixelsOn(device, goldens, name), ids, goldens.ids(`${name}.qformer_input_ids`));
        const { promptLogits } = greedy(model.languageModel, embed, 0);
        const expected = goldens.floats(`${name}.first_step_logits`);
        expectClose(promptLogits.slice(-expected.length), expected, LOGITS[dtype], 'logits');
      });
      model.dispose();
    });
  },
);

describe.each(testDevices)('BLIP-2 over LLaMA (no instruction, llama3 frequencies) on %s', (device) => {
  const goldens = new Goldens('generated', 'blip2-llama-tiny', 'expected.safetensors');
  let model: Blip2;

  beforeAll(async () => {
    model = await loadForTest<Blip2>(fixturePath('generated', 'blip2-llama-tiny'), inF32(device));
  });
  afterAll(() => model.dispose());
  expectNoLeaks();

  it('matches prompt logits and greedy ids of the reference', () => {
    scope(() => {
      const image = Tensor.fromArray(goldens.floats('pixel_values'), [2, 3, 28, 28], { device }).slice(0, 0, 1);
      const embeds = () => promptEmbeds(model, image, goldens.ids('input_ids'));
      const { promptLogits, ids } = greedy(model.languageModel, embeds, 12, { eos: [2] });
      expectClose(promptLogits, goldens.floats('prompt_logits'), LOGITS.f32, 'prompt logits');
      expect(ids).toEqual(untilEos(goldens.ids('greedy_ids'), 2));
    });
  });
});

describe('placing image tokens', () => {
  const current = { numQueryTokens: 2, imageTokenId: 9 } as ModelConfig;
  const legacy = { numQueryTokens: 2 } as ModelConfig;

  it('finds placeholders wherever they stand, for any number of images', () => {
    expect(placeImageTokens(current, [1, 9, 9, 5, 9, 9], 2)).toEqual({
      ids: [1, 9, 9, 5, 9, 9],
      imageRows: [1, 2, 4, 5],
    });
    expect(placeImageTokens(current, [1, 5], 0)).toEqual({ ids: [1, 5], imageRows: [] });
  });

  it('puts slots in front where the prompt has none', () => {
    expect(placeImageTokens(current, [1, 5], 1)).toEqual({ ids: [9, 9, 1, 5], imageRows: [0, 1] });
    expect(placeImageTokens(legacy, [1, 9], 2)).toEqual({ ids: [0, 0, 0, 0, 1, 9], imageRows: [0, 1, 2, 3] });
    expect(placeImageTokens(legacy, [1, 9], 0)).toEqual({ ids: [1, 9], imageRows: [] });
  });

  it.each([
    [[9, 1], 1],
    [[9, 9, 9, 1], 1],
    [[9, 9], 0],
  ])('refuses %j for %i images, saying how many placeholders it needs', (ids, images) => {
    const details = { placeholders: ids.filter((id) => id === 9).length, expected: 2 * images };
    expect(() => placeImageTokens(current, ids, images)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', details }),
    );
  });
});

/** Reference rows are padded after the end; a generation ends with its eos. */
function untilEos(ids: number[], eos: number): number[] {
  const end = ids.indexOf(eos);
  return end < 0 ? ids : ids.slice(0, end + 1);
}
