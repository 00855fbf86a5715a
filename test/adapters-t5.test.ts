// Adapters of an encoder–decoder model against the reference, on every device: both stacks have them, in the batch, in beams and in rankings, and
// nothing that an encoder wrote for one adapter is read with another.

import { beforeAll, describe, expect, it } from 'vitest';
import { Ranking } from '../lib/engine/scheduling/ranking.js';
import {
  generatedGoldens,
  loadT5Adapters,
  T5_ADAPTERS,
  t5Requests,
  type T5Request,
} from './support/adapter-requests.js';
import { expectDevices, inF32, isChecked, sample, testDevices } from './support/devices.js';
import { finishAll, idsSequence, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { expectFirstLogits, FIRST_LOGITS } from './support/expect-logits.js';
import { expectClose } from './support/fixtures.js';
import { plainRequests } from './support/reference-requests.js';

expectDevices();

const T5 = 'instructblip-flant5-tiny';

let greedy: T5Request[];
let beams: T5Request[];
/** The same prompts without adapter. */
let bare: Pick<T5Request, 'request' | 'ids'>[];
beforeAll(async () => {
  [greedy, beams] = [await t5Requests(1), await t5Requests(3)];
  bare = (await plainRequests(T5)).slice(0, 2);
});

describe.each(testDevices)('adapters of encoder and decoder on %s', (device) => {
  const withT5 = (options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> =>
    withEngine(T5, { ...inF32(device), dtype: 'f32', ...options }, (loaded) => {
      loadT5Adapters(loaded);
      use(loaded);
    });

  /** With checks the first tokens; of beams all, or others would be found. */
  function expectIds(loaded: LoadedEngine, items: typeof bare): void {
    const asked = items.map(({ request, ids }) => {
      const tokens = isChecked(device) && (request.params!.numBeams ?? 1) === 1 ? 3 : request.params!.maxNewTokens!;
      return {
        request: { ...request, params: { ...request.params, maxNewTokens: tokens } },
        ids: ids.slice(0, tokens),
      };
    });
    const results = runTogether(
      loaded,
      asked.map(({ request }) => request),
    );
    expect(results.map(({ tokenIds }) => tokenIds)).toEqual(asked.map(({ ids }) => ids));
  }

  it.each(T5_ADAPTERS)('%s gives the reference logits, by request and merged', (name) =>
    withT5({}, (loaded) => {
      // leaves what the bare model makes of the images in the cache
      expectIds(loaded, bare);
      const own = greedy.filter(({ request }) => request.adapter === name);
      expect(own).toHaveLength(2);
      const check = (adapter: string | undefined): void =>
        own.forEach(({ request, logits }) => {
          const [result] = runTogether(loaded, [{ ...request, adapter, params: FIRST_LOGITS }]);
          expectFirstLogits(result!, generatedGoldens.floats(logits));
        });
      check(name);
      loaded.adapters.merge(name);
      check(undefined);
    }),
  );

  const variants: [string, LoadOptions][] = [
    ['in chunks of 9 tokens in a small pool', { maxStepTokens: 9, kvCacheTokens: 96 }],
    ['with defaults', {}],
    ['without caches', { prefixCache: false, imageCacheBytes: 0 }],
  ];
  it.each(sample(device, variants))('give the reference ids in one batch, %s', (_, options) =>
    withT5(options, (loaded) => {
      expectIds(loaded, [...greedy, ...bare]);
      // again, now with what the caches hold
      expectIds(loaded, [...greedy, ...bare].toReversed());
    }),
  );

  it('are those of all beams of a request', () =>
    withT5({}, (loaded) => expectIds(loaded, [...sample(device, beams, 1), ...greedy, ...bare])));

  it('score the candidates of a ranking as the answers of a greedy search', () =>
    withT5({}, (loaded) => {
      const { engine, model, adapters } = loaded;
      const sequence = (id: number, request: IdsRequest, name: string | undefined) =>
        idsSequence(id, model, { ...request, adapter: adapters.identityFor(name) });
      for (const { request: asked, ids } of sample(device, [greedy[0]!, greedy[2]!, bare[0]!])) {
        const request = { ...asked, params: { maxNewTokens: 6, logprobs: 0 } };
        const [found] = runTogether(loaded, [request]);
        engine.add(new Ranking(sequence(2, request, asked.adapter), [[7, 8], ids.slice(0, 6), [9]]));
        // beside a request with another adapter
        engine.add(sequence(3, request, asked.adapter === 't5' ? 't5-dora' : 't5'));
        const { candidates } = finishAll(engine).get(2)!;
        expectClose(
          candidates![1]!.logprobs,
          found!.logprobs!.map(({ logprob }) => logprob),
          { atol: 1e-5 },
        );
      }
    }));
});
