// Models whose linear layers are quantised while they are loaded: what is quantised and what not, that the results are those of
// the widened weights, and that they depend on the request alone.

import { describe, expect, it } from 'vitest';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import type { Blip2 } from '../lib/models/blip2.js';
import type { Llama } from '../lib/models/llama.js';
import { createModel } from '../lib/models/registry.js';
import { Weights } from '../lib/models/weights.js';
import type { Linear } from '../lib/nn/linear.js';
import { ops, scope, Tensor } from '../lib/tensor/index.js';
import { activationDtypes, expectDevices, isEmulated, testDevices } from './support/devices.js';
import { finishAll, idsSequence, loadEngine, type IdsRequest } from './support/engine-models.js';
import { expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { noise } from './support/noise.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';
const LLAMA = 'llama-gqa-tiny';

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
      expect(languageModel.lmHead.quantized).toBeUndefined();
      expect(weights.bytes).toBeLessThan(weights.checkpoint.bytes * 0.85);
    }));

  it('has scales for groups of at most 64 columns that divide the row evenly', () =>
    withVicuna(quantize, ({ languageModel: { layers } }) => {
      // 160, 272 = 8 · 34 columns
      expect(layers[0]!.qProj.weight.quantized!.scales.shape).toEqual([160, 4]);
      expect(layers[0]!.downProj.weight.quantized!.scales.shape).toEqual([160, 8]);
    }));

  it('computes with the widened weights: the bits of a dense layer that has them', () =>
    withVicuna(quantize, ({ languageModel: { layers } }) =>
      scope(() => {
        const { qProj, inputLayernorm } = layers[0]!;
        const [n, k] = qProj.weight.shape as [number, number];
        const identity = Float32Array.from({ length: k * k }, (_, i) => (i % (k + 1) === 0 ? 1 : 0));
        const columns = ops.quantLinear(Tensor.fromArray(identity, [k, k]), qProj.weight.quantized!);
        const widened = columns.transpose(0, 1).contiguous();
        const x = Tensor.fromArray(noise(3 * k, 1), [3, k]);
        const [residual, norm] = [
          Tensor.fromArray(noise(3 * n, 2), [3, n]),
          { weight: inputLayernorm.weight.tensor, eps: inputLayernorm.eps },
        ];
        const expected = ops.linear(x, widened, { norm, residual, activation: 'silu' });
        const actual = qProj.forward(x, { norm, residual, activation: 'silu' });
        expectSameBits(actual.toFloat32(), expected.toFloat32());
      }),
    ));
});

const runs = testDevices.flatMap((device) =>
  activationDtypes(device)
    .filter((dtype) => dtype === 'f32' || isEmulated(device))
    .flatMap((dtype) => (['int8', 'int4'] as const).map((quantize) => ({ device, dtype: dtype as 'f32', quantize }))),
);

describe.each(runs)('$quantize on $device in $dtype', ({ device, dtype, quantize }) => {
  expectNoLeaks();

  const requests = (): IdsRequest[] => {
    const goldens = new Goldens(LLAMA, 'expected.safetensors');
    const maxNewTokens = isEmulated(device) ? 3 : 8;
    return ['short0', 'short1'].map((name) => ({
      ids: goldens.ids(`${name}.input_ids`),
      params: { maxNewTokens, logprobs: 2 },
    }));
  };

  it('gives a request the same bytes alone, in a batch, in chunks and from recorded graphs', async () => {
    const run = async (options: object, groups: IdsRequest[][]): Promise<string[]> => {
      const loaded = await loadEngine(LLAMA, { device, dtype, quantize, kvCacheTokens: 512, ...options });
      try {
        return groups.flatMap((group) => {
          group.forEach((request, id) => loaded.engine.add(idsSequence(id, loaded.model, request)));
          const results = finishAll(loaded.engine);
          return group.map((_, id) => JSON.stringify([results.get(id)!.tokenIds, results.get(id)!.logprobs]));
        });
      } finally {
        loaded.dispose();
      }
    };
    const alone = await run(
      { decodeGraphs: false },
      requests().map((request) => [request]),
    );
    expect(await run({ maxStepTokens: 5 }, [requests()])).toEqual(alone);
  });
});
