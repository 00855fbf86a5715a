// Models whose linear layers are quantised while they are loaded: what is quantised and what not, that the results are those of
// the widened weights, and that they depend on the request alone.

import { describe, expect, it } from 'vitest';
import { loadEngine } from '../lib/engine/execution/load.js';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import type { Blip2 } from '../lib/models/blip2.js';
import type { Llama } from '../lib/models/llama.js';
import { createModel } from '../lib/models/registry.js';
import type { T5, T5Attention, T5FeedForward } from '../lib/models/t5.js';
import { Weights } from '../lib/models/weights.js';
import type { Linear } from '../lib/nn/linear.js';
import type { Parameter } from '../lib/nn/parameter.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, isChecked, runs } from './support/devices.js';
import { bytesOf, runTogether, withEngine, type IdsRequest } from './support/engine-models.js';
import { expectClose, expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { greedyEncoded } from './support/models.js';
import { noise } from './support/noise.js';
import { widened } from './support/quantized.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';

async function withVicuna(
  quantize: 'int8' | 'int4',
  use: (model: Blip2 & { languageModel: Llama }, weights: Weights) => void,
): Promise<void> {
  const checkpoint = openCheckpoint(fixturePath(VICUNA));
  const weights = new Weights(checkpoint, { device: 'cpu', dtype: 'auto', quantize });
  const model = createModel(checkpoint, weights) as Blip2 & { languageModel: Llama };
  await weights.load();
  try {
    use(model, weights);
  } finally {
    model.dispose();
  }
}

/** Bits per weight as stored; undefined where the layer is not quantised. */
function bitsOf({ weight }: Linear): number | undefined {
  const columns = weight.shape[1]!;
  return weight.quantized && (8 * weight.quantized.q.shape[1]!) / columns;
}

/** The weight that quantised codes stand for: [out, in] f32. */
const denseWeight = ({ shape, quantized }: Parameter): Tensor =>
  Tensor.fromArray(widened(quantized!, shape[1]!), [...shape]);

describe.each(['int8', 'int4'] as const)('%s', (quantize) => {
  expectNoLeaks();

  it('quantises language model and vision tower, the latter to no less than 8 bits, and nothing else', () =>
    withVicuna(quantize, ({ languageModel, visionModel, qformer, languageProjection }, weights) => {
      const bits = quantize === 'int8' ? 8 : 4;
      for (const layer of languageModel.layers) {
        const { qProj, kProj, vProj, oProj, gateProj, upProj, downProj } = layer;
        for (const linear of [qProj, kProj, vProj, oProj, gateProj, upProj, downProj])
          expect(bitsOf(linear)).toBe(bits);
      }
      for (const { qkv, projection, fc1, fc2 } of visionModel.layers) {
        for (const linear of [qkv, projection, fc1, fc2]) expect(bitsOf(linear)).toBe(8);
      }
      expect(bitsOf(qformer.layers[0]!.attention.query)).toBeUndefined();
      expect(bitsOf(languageProjection)).toBeUndefined();
      expect(languageModel.lmHead.quantized!.q.shape).toEqual(languageModel.lmHead.shape);
      expect(languageModel.embedTokens.weight.quantized).toBeUndefined();
      expect(weights.bytes).toBeLessThan(weights.checkpoint.bytes * 0.85);
    }));

  it('has scales for groups of at most 64 columns that divide the row evenly', () =>
    withVicuna(quantize, ({ languageModel: { layers } }) => {
      // 160, 272 = 8 · 34 columns
      expect(layers[0]!.qProj.weight.quantized!.scales.shape).toEqual([160, 4]);
      expect(layers[0]!.downProj.weight.quantized!.scales.shape).toEqual([160, 8]);
    }));

  it('computes with the widened weights where groups are no whole units: the bits of a dense layer that has them', () =>
    withVicuna(quantize, ({ languageModel: { layers } }) =>
      scope(() => {
        const { qProj, inputLayernorm } = layers[0]!;
        const [n, k] = qProj.weight.shape as [number, number];
        const x = Tensor.fromArray(noise(3 * k, 1), [3, k]);
        const [residual, norm] = [
          Tensor.fromArray(noise(3 * n, 2), [3, n]),
          { weight: inputLayernorm.weight.tensor, eps: inputLayernorm.eps },
        ];
        const expected = ops.linear(x, denseWeight(qProj.weight), { norm, residual, activation: 'silu' });
        const actual = qProj.forward(x, { norm, residual, activation: 'silu' });
        expectSameBits(actual.toFloat32(), expected.toFloat32());
      }),
    ));
});

const quantizedRuns = runs.flatMap((run) => [
  { ...run, quantize: 'int8' as const },
  { ...run, quantize: 'int4' as const },
  ...(run.device === 'cpu' ? [{ ...run, quantize: 'int4' as const, quantizeActivations: true }] : []),
]);

describe.each(quantizedRuns)('$quantize on $device in $dtype', ({ device, dtype, ...quantization }) => {
  expectNoLeaks();

  const models: [string, () => number[][]][] = [
    ['llama-gqa-tiny', () => ['short0', 'short1'].map((name) => golden('llama-gqa-tiny', `${name}.input_ids`))],
    ['generated/t5-tiny', () => [0, 20].map((from) => golden('generated/t5-tiny', 'input_ids').slice(from))],
  ];
  const golden = (model: string, name: string): number[] => new Goldens(model, 'expected.safetensors').ids(name);

  it.each(models)(
    'gives a request to %s the same bytes alone, in a batch, in chunks and from recorded graphs',
    async (model, prompts) => {
      const params = { maxNewTokens: isChecked(device) ? 3 : 8, logprobs: 2 };
      const requests = prompts().map((ids): IdsRequest => ({ ids, params }));
      const options = { device, dtype, ...quantization, kvCacheTokens: 512 };
      let alone: string[] = [];
      await withEngine(model, { ...options, decodeGraphs: false }, (loaded) => {
        alone = requests.map((request) => bytesOf(runTogether(loaded, [request])[0]!));
      });
      await withEngine(model, { ...options, maxStepTokens: 5 }, (loaded) => {
        expect(runTogether(loaded, requests).map(bytesOf)).toEqual(alone);
      });
    },
  );
});

describe('activations in 8 bits', () => {
  expectNoLeaks();

  it('change logits, a little', async () => {
    const ids = new Goldens('llama-gqa-tiny', 'expected.safetensors').ids('short0.input_ids');
    const logprobs = async (quantizeActivations: boolean): Promise<number[]> => {
      let found: number[] = [];
      await withEngine('llama-gqa-tiny', { device: 'cpu', quantize: 'int8', quantizeActivations }, (loaded) => {
        const [result] = runTogether(loaded, [{ ids, params: { maxNewTokens: 1, logprobs: 2 } }]);
        found = result!.logprobs!.map(({ logprob }) => logprob);
      });
      return found;
    };
    const [exact, rounded] = [await logprobs(false), await logprobs(true)];
    expect(rounded).not.toEqual(exact);
    rounded.forEach((value, i) => expect(Math.abs(value - exact[i]!)).toBeLessThan(0.05));
  });

  it('need quantised weights', () =>
    expect(loadEngine({ dir: fixturePath('llama-gqa-tiny'), quantizeActivations: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('needs quantize') as string,
    }));
});

describe.each(['int8', 'int4'] as const)('T5 in %s', (quantize) => {
  expectNoLeaks();
  const T5_FIXTURE = 'instructblip-flant5-tiny';

  async function withT5(use: (t5: T5, weights: Weights) => void): Promise<void> {
    const checkpoint = openCheckpoint(fixturePath(T5_FIXTURE));
    const weights = new Weights(checkpoint, { device: 'cpu', dtype: 'auto', quantize });
    const model = createModel(checkpoint, weights) as Blip2;
    await weights.load();
    try {
      use(model.languageModel as T5, weights);
    } finally {
      model.dispose();
    }
  }

  const attentionLayers = ({ q, k, v, o }: T5Attention): Linear[] => [q, k, v, o];
  const feedForwardLayers = ({ inner, wo }: T5FeedForward): Linear[] => [...inner, wo];
  const linearsOf = ({ encoder, decoderBlocks }: T5): Linear[] => [
    ...encoder.blocks.flatMap((block) => [
      ...attentionLayers(block.selfAttention),
      ...feedForwardLayers(block.feedForward),
    ]),
    ...decoderBlocks.flatMap((block) => [
      ...attentionLayers(block.selfAttention),
      ...attentionLayers(block.crossAttention),
      ...feedForwardLayers(block.feedForward),
    ]),
  ];

  it('quantises both stacks, cross-attention and the head, and no table', () =>
    withT5((t5, weights) => {
      const linears = linearsOf(t5);
      expect(linears.length).toBe(7 * t5.encoder.blocks.length + 11 * t5.decoderBlocks.length);
      for (const linear of linears) expect(bitsOf(linear)).toBe(quantize === 'int8' ? 8 : 4);
      expect(t5.lmHead.quantized!.q.shape).toEqual(t5.lmHead.shape);
      expect(t5.shared.weight.quantized).toBeUndefined();
      expect(weights.bytes).toBeLessThan(weights.checkpoint.bytes * 0.85);
    }));

  it('answers as a dense model that has the widened weights', () =>
    withT5((t5) =>
      scope(() => {
        const goldens = new Goldens(T5_FIXTURE, 'expected.safetensors');
        const { shape } = goldens.get('c0.inputs_embeds');
        const inputs = Tensor.fromArray(goldens.floats('c0.inputs_embeds'), shape.slice(1));
        const quantized = greedyEncoded(t5, inputs, 6);
        for (const weight of [...linearsOf(t5).map((linear) => linear.weight), t5.lmHead])
          weight.assign(denseWeight(weight));
        const expected = greedyEncoded(t5, inputs, 6);
        expect(expected.ids).toEqual(quantized.ids);
        expected.logits.forEach((row, step) =>
          expectClose(quantized.logits[step]!, row, { atol: 1e-3 }, `step ${step}`),
        );
        const reference = goldens.floats('c0.first_step_logits');
        expect(quantized.logits[0]!.some((value, i) => Math.abs(value - reference[i]!) > 1e-3)).toBe(true);
      }),
    ));
});
