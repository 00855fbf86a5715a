// Adapters and beams on every device and in every dtype it computes in, against the reference in f32: logits of the first step
// within the fixtures' tolerance of the dtype, and the score of each beam against the likelihood that the CPU gives its tokens.

import { describe, expect, it } from 'vitest';
import { Ranking } from '../lib/engine/ranking.js';
import { loadLoras, loraGoldens, loraIds, loraRequests } from './support/adapter-requests.js';
import { activationDtypes, expectDevices, isEmulated, testDevices } from './support/devices.js';
import { bytesOf, finishAll, idsSequence, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest } from './support/engine-models.js';
import { expectFirstLogits, FIRST_LOGITS } from './support/expect-logits.js';
import { Goldens } from './support/fixtures.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';
const LLAMA = 'llama-gqa-tiny';
/** Of logits, by the fixtures. */
const LOGITS = { f32: 1e-3, f16: 5e-2, bf16: 3e-1 };

const runs = testDevices.flatMap((device) =>
  activationDtypes(device).map((dtype) => ({ device, dtype: dtype as 'f32' | 'f16' | 'bf16' })),
);

describe.each(runs)('on $device in $dtype', ({ device, dtype }) => {
  const options = { device, dtype, kvCacheTokens: 512 };

  it('requests with an adapter, with another one and with none share a batch: reference logits, the bytes of each alone', async () => {
    const asked = await loraRequests();
    const names = ['adapter_a_standard', undefined, 'adapter_d_vision'];
    const requests = names.map((adapter, i): IdsRequest => ({ ...asked[i]!, adapter, params: FIRST_LOGITS }));
    await withEngine(VICUNA, options, (loaded) => {
      loadLoras(loaded, ['adapter_a_standard', 'adapter_d_vision']);
      const together = runTogether(loaded, requests);
      together.forEach((result, i) => {
        const logits = loraGoldens.floats(`${names[i] ?? 'none'}.r${i}.first_step_logits`);
        expectFirstLogits(result, logits, { atol: LOGITS[dtype] }, String(names[i]));
      });
      expect(requests.map((request) => bytesOf(runTogether(loaded, [request])[0]!))).toEqual(together.map(bytesOf));
    });
  }, 120_000);

  it('an adapter goes on through recorded steps as without them', async () => {
    const [first] = await loraRequests();
    const adapter = 'adapter_c_patterns';
    const maxNewTokens = isEmulated(device) ? 3 : 12;
    const request: IdsRequest = { ...first!, adapter, params: { maxNewTokens, logprobs: 2 } };
    const requests = [request, { ...request, adapter: undefined }];
    const bytes: string[][] = [];
    for (const decodeGraphs of [true, false]) {
      await withEngine(VICUNA, { ...options, decodeGraphs }, (loaded) => {
        loadLoras(loaded, [adapter]);
        const results = runTogether(loaded, requests);
        bytes.push(results.map(bytesOf));
        if (dtype !== 'f32') return;
        results.forEach(({ tokenIds }, i) => {
          expect(tokenIds).toEqual(loraIds(requests[i]!.adapter, 0).slice(0, maxNewTokens));
        });
      });
    }
    expect(bytes[1]).toEqual(bytes[0]);
  }, 120_000);

  it('beams have the scores that the CPU gives their tokens, in f32 those of the CPU’s own search', async () => {
    const ids = new Goldens(LLAMA, 'expected.safetensors').ids('short0.input_ids');
    const params = { maxNewTokens: 4, numBeams: 3, numReturnSequences: 3, lengthPenalty: 1 };
    const request: IdsRequest = { ids, params };
    let found: { tokenIds: number[]; score: number }[] = [];
    await withEngine(LLAMA, options, (loaded) => {
      found = runTogether(loaded, [request])[0]!.beams!;
    });
    expect(new Set(found.map(({ tokenIds }) => tokenIds.join())).size).toBe(3);
    await withEngine(LLAMA, { device: 'cpu', dtype: 'f32' }, (loaded) => {
      const { engine, model } = loaded;
      const own = runTogether(loaded, [request])[0]!.beams!;
      if (dtype === 'f32') expect(found.map(({ tokenIds }) => tokenIds)).toEqual(own.map(({ tokenIds }) => tokenIds));
      engine.add(
        new Ranking(
          idsSequence(1, model, { ids }),
          found.map(({ tokenIds }) => tokenIds),
        ),
      );
      finishAll(engine)
        .get(1)!
        .candidates!.forEach(({ logprobs }, i) => {
          const mean = logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length;
          // a log-softmax moves by no more than twice what its logits do
          expect(Math.abs(found[i]!.score - mean)).toBeLessThan(2 * LOGITS[dtype]);
        });
    });
  }, 120_000);
});
