// The engine on every device and in every dtype it computes in: reference ids in f32, and in each dtype the promise that a
// request's bytes depend on the request alone: not on the others in the batch, on chunks, nor on recorded graphs.

import { describe, expect, it } from 'vitest';
import { activationDtypes, expectDevices, isEmulated, testDevices } from './support/devices.js';
import { bytesOf, fixturePath, readImage, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { Goldens } from './support/fixtures.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';
const LLAMA = 'llama-gqa-tiny';
const T5 = 'generated/t5-tiny';
const runs = testDevices.flatMap((device) =>
  activationDtypes(device).map((dtype) => ({ device, dtype: dtype as 'f32' | 'f16' | 'bf16' })),
);

describe.each(runs)('on $device in $dtype', ({ device, dtype }) => {
  const tokens = isEmulated(device) ? 5 : 12;

  const onDevice = (name: string, options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(name, { device, dtype, kvCacheTokens: 512, ...options }, use);

  const run = (loaded: LoadedEngine, requests: readonly IdsRequest[]): string[] =>
    runTogether(loaded, requests).map(bytesOf);

  async function vicunaRequests(): Promise<IdsRequest[]> {
    const goldens = new Goldens(VICUNA, 'expected.safetensors');
    return Promise.all(
      ['c0', 'c3'].map(async (name, i) => ({
        ids: goldens.ids(`${name}.input_ids`),
        images: [await readImage(`${fixturePath(VICUNA)}/images/img${i}.png`)],
        instructionIds: goldens.ids(`${name}.qformer_input_ids`),
        params: { maxNewTokens: tokens, logprobs: 2 },
      })),
    );
  }

  function llamaRequests(): IdsRequest[] {
    const goldens = new Goldens(LLAMA, 'expected.safetensors');
    const ids = (name: string) => goldens.ids(`${name}.input_ids`);
    const long = goldens.ids('long.input_ids').slice(0, 40);
    return [
      { ids: ids('short0'), params: { maxNewTokens: tokens, logprobs: 2 } },
      { ids: ids('short1'), params: { maxNewTokens: tokens + 2, logprobs: 2, temperature: 0.8, topK: 20, seed: 7 } },
      { ids: long, params: { maxNewTokens: tokens, logprobs: 2, repetitionPenalty: 1.2, temperature: 1, topP: 0.9 } },
      {
        ids: ids('short2'),
        params: { maxNewTokens: tokens, numBeams: 3, numReturnSequences: 3, repetitionPenalty: 1.1 },
      },
    ];
  }

  it.runIf(dtype === 'f32')(
    'gives the reference ids of a question about an image',
    async () => {
      const [request] = await vicunaRequests();
      const expected = new Goldens(VICUNA, 'expected.safetensors').ids('c0.greedy_ids').slice(0, tokens);
      await onDevice(VICUNA, {}, (loaded) => {
        const [result] = run(loaded, [request!]);
        expect((JSON.parse(result!) as { tokenIds: number[] }).tokenIds).toEqual(expected);
      });
    },
    120_000,
  );

  it('answers questions about images together as one by one', async () => {
    const requests = await vicunaRequests();
    await onDevice(VICUNA, {}, (loaded) => {
      const alone = requests.map((request) => run(loaded, [request])[0]);
      expect(run(loaded, requests)).toEqual(alone);
    });
  }, 120_000);

  it('answers through an encoder alone, together and without recorded graphs with the same bytes', async () => {
    const goldens = new Goldens(T5, 'expected.safetensors');
    const ids = goldens.ids('input_ids');
    const requests: IdsRequest[] = [ids, ids.slice(20)].map((prompt, i) => ({
      ids: prompt,
      params: { maxNewTokens: tokens + i, logprobs: 2 },
    }));
    let alone: (string | undefined)[] = [];
    await onDevice(T5, {}, (loaded) => {
      alone = requests.map((request) => run(loaded, [request])[0]);
      const { tokenIds } = JSON.parse(alone[0]!) as { tokenIds: number[] };
      if (dtype === 'f32') expect(tokenIds).toEqual(goldens.ids('greedy_ids').slice(0, tokens));
      expect(run(loaded, requests), 'together').toEqual(alone);
    });
    await onDevice(T5, { decodeGraphs: false, prefixCache: false }, (loaded) => {
      expect(run(loaded, requests), 'without graphs').toEqual(alone);
    });
  }, 120_000);

  it('continues texts alone, together, in chunks and without recorded graphs with the same bytes', async () => {
    const requests = llamaRequests();
    let alone: (string | undefined)[] = [];
    await onDevice(LLAMA, {}, (loaded) => {
      alone = requests.map((request) => run(loaded, [request])[0]);
      expect(run(loaded, requests), 'together').toEqual(alone);
    });
    await onDevice(LLAMA, { maxStepTokens: 9, prefixCache: false }, (loaded) => {
      expect(run(loaded, requests), 'in chunks').toEqual(alone);
    });
    await onDevice(LLAMA, { decodeGraphs: false }, (loaded) => {
      expect(run(loaded, requests), 'without graphs').toEqual(alone);
    });
  }, 120_000);
});
