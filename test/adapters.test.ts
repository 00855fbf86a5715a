// PEFT adapters against the reference, on every device and in every dtype it computes in: every kind alone, several in one batch,
// merged; and that nothing of an adapter shows where it is not asked for.

import { beforeAll, describe, expect, it } from 'vitest';
import { liveTensors } from '../lib/tensor/index.js';
import {
  generatedGoldens,
  LORA_NAMES,
  loadLoras,
  loraGoldens,
  loraIds,
  loraRequests,
} from './support/adapter-requests.js';
import { expectDevices, halfRuns, inF32, isChecked, isEmulated, sample, testDevices } from './support/devices.js';
import { bytesOf, runTogether, withEngine } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { expectFirstLogits, FIRST_LOGITS } from './support/expect-logits.js';
import { fixturePath, readJson } from './support/fixtures.js';
import { LOGITS } from './support/tolerances.js';

expectDevices();

const VICUNA = 'instructblip-vicuna-tiny';

interface Expected {
  mixed_batches: Record<string, { adapters_by_row: (string | null)[]; greedy_ids: number[][] }>;
}

const { mixed_batches: batches } = readJson<Expected>('lora', 'expected.json');
/** What a finished answer is followed by in a batch of the reference. */
const PAD = 1000;

/** The results, in bytes, of requests that run together. */
const run = (loaded: LoadedEngine, items: IdsRequest[]): string[] => runTogether(loaded, items).map(bytesOf);

describe.each(testDevices)('on %s', (device) => {
  // On the emulated GPU for fewer tokens, with checks a few requests of a few adapters, for two.
  const tokens = isChecked(device) ? 2 : isEmulated(device) ? 8 : 24;
  const names = sample(device, LORA_NAMES, 2);
  let requests: IdsRequest[];
  beforeAll(async () => {
    requests = (await loraRequests()).map((request) => ({
      ...request,
      params: { ...request.params, maxNewTokens: tokens },
    }));
  });

  const withVicuna = (options: LoadOptions, use: (loaded: LoadedEngine) => void | Promise<void>): Promise<void> =>
    withEngine(VICUNA, { ...inF32(device), ...options }, use);

  /** The reference's requests in turn, with these adapters. */
  const requestsWith = (adapters: (string | undefined)[]): IdsRequest[] =>
    adapters.map((adapter, i) => ({ ...requests[i % 3]!, adapter }));

  /** Each request of the reference by itself, greedily. */
  function expectReferenceIds(loaded: LoadedEngine, name: string, adapter: string | undefined): void {
    sample(device, requests).forEach((request, i) => {
      const [result] = runTogether(loaded, [{ ...request, adapter }]);
      expect(result!.tokenIds).toEqual(loraIds(name, i).slice(0, tokens));
    });
  }

  describe('an adapter by request', () => {
    it.each(names)('%s gives the reference ids', (name) =>
      withVicuna({}, (loaded) => {
        loadLoras(loaded);
        expectReferenceIds(loaded, name, name);
      }),
    );

    it.each(LORA_NAMES)('%s gives the reference logits', (name) =>
      withVicuna({}, (loaded) => {
        loadLoras(loaded);
        sample(device, requests).forEach((request, i) => {
          const [result] = runTogether(loaded, [{ ...request, adapter: name, params: FIRST_LOGITS }]);
          expectFirstLogits(result!, loraGoldens.floats(`${name}.r${i}.first_step_logits`));
        });
      }),
    );

    it.each(sample(device, Object.keys(batches)))('batch %s of several adapters gives the reference ids', (name) =>
      withVicuna({}, (loaded) => {
        loadLoras(loaded);
        const { adapters_by_row, greedy_ids } = batches[name]!;
        const items = requests.map((request, i) => ({ ...request, adapter: adapters_by_row[i] ?? undefined }));
        runTogether(loaded, items).forEach(({ tokenIds }, i) => {
          expect(tokenIds).toEqual(greedy_ids[i]!.filter((id) => id !== PAD).slice(0, tokens));
        });
      }),
    );

    const variants: [string, LoadOptions][] = [
      ['in chunks of 9 tokens, preempted all the time', { maxStepTokens: 9, kvCacheTokens: 64 }],
      ['with defaults', {}],
      ['without caches', { prefixCache: false, imageCacheBytes: 0 }],
    ];
    it.each(isEmulated(device) ? variants.slice(0, 1) : variants)(
      'gives different requests the bytes they have alone, %s',
      (_, options) =>
        withVicuna({}, async (alone) => {
          loadLoras(alone);
          const eight = [undefined, ...LORA_NAMES, undefined, ...LORA_NAMES.slice(0, 2)];
          const items = requestsWith(isChecked(device) ? [undefined, ...names] : eight);
          const lonely = items.map((item) => run(alone, [item])[0]!);
          await withVicuna(options, (together) => {
            loadLoras(together);
            expect(run(together, items)).toEqual(lonely);
            if (!isEmulated(device)) expect(run(together, items.toReversed())).toEqual(lonely.toReversed());
          });
        }),
    );

    it('leaves requests without adapter the bytes of a model that has none', () =>
      withVicuna({}, (loaded) => {
        const bare = run(loaded, requests);
        loadLoras(loaded);
        expect(run(loaded, requests)).toEqual(bare);
        const mixed = sample(device, requests, 2).flatMap((request) =>
          [...names, undefined].map((adapter): IdsRequest => ({ ...request, adapter })),
        );
        const each = names.length + 1;
        expect(run(loaded, mixed).filter((__, i) => i % each === each - 1)).toEqual(bare.slice(0, mixed.length / each));
        sample(device, requests).forEach((request, i) => {
          expect(runTogether(loaded, [request])[0]!.tokenIds).toEqual(loraIds(undefined, i).slice(0, tokens));
        });
      }));

    it.skipIf(isChecked(device))('does not depend on which other adapters are loaded', () =>
      withVicuna({}, (loaded) => {
        const [first, second, ...rest] = LORA_NAMES as [string, string, ...string[]];
        const request = { ...requests[0]!, adapter: first };
        loadLoras(loaded, [first]);
        const only = run(loaded, [request]);
        loadLoras(loaded, [second, ...rest]);
        expect(run(loaded, [request])).toEqual(only);
        loaded.adapters.unload(second);
        expect(run(loaded, [request])).toEqual(only);
      }),
    );
  });

  describe('quantised weights with adapters', () => {
    it('give a request the same bytes alone and beside others', () =>
      withVicuna({ quantize: 'int8' }, (loaded) => {
        loadLoras(loaded);
        const items = requestsWith([undefined, ...sample(device, LORA_NAMES)]);
        const alone = items.map((item) => run(loaded, [item])[0]!);
        expect(run(loaded, items)).toEqual(alone);
      }));
  });

  describe('adapters that change weights', () => {
    const KINDS = ['dora', 'saved', 'qformer', 'tables', 'bias'];
    const folder = (kind: string): string => fixturePath(`generated/adapters/${kind}`);

    it.each(KINDS)('%s gives the reference logits, by request and merged', (kind) =>
      withVicuna({ dtype: 'f32' }, (loaded) => {
        const check = (adapter: string | undefined): void =>
          sample(device, requests.slice(0, 2)).forEach((request, i) => {
            const [result] = runTogether(loaded, [{ ...request, adapter, params: FIRST_LOGITS }]);
            expectFirstLogits(result!, generatedGoldens.floats(`${kind}.r${i}.first_step_logits`));
          });
        loaded.adapters.load(kind, folder(kind));
        check(kind);
        loaded.adapters.merge(kind);
        check(undefined);
      }),
    );

    it('share a batch with others, each request with the bytes it has alone', () =>
      withVicuna({}, (loaded) => {
        const { adapters } = loaded;
        const bare = run(loaded, requestsWith([undefined]));
        const kinds = sample(device, KINDS, 2);
        for (const kind of kinds) adapters.load(kind, folder(kind));
        loadLoras(loaded);
        const items = requestsWith([...kinds, undefined, ...sample(device, LORA_NAMES)]);
        const alone = items.map((item) => run(loaded, [item])[0]!);
        expect(run(loaded, items)).toEqual(alone);
        expect(run(loaded, requestsWith([undefined]))).toEqual(bare);
      }));

    it.skipIf(isChecked(device))('leave nothing behind', () =>
      withVicuna({}, ({ adapters }) => {
        const live = liveTensors();
        for (let i = 0; i < (isEmulated(device) ? 1 : 3); i++) {
          for (const kind of KINDS) {
            adapters.load(kind, folder(kind));
            adapters.merge(kind);
            adapters.unload(kind);
          }
        }
        expect(liveTensors()).toBe(live);
      }),
    );
  });

  describe('merging', () => {
    it.each(names)('%s changes every request, and unmerging gives the bare bytes back', (name) =>
      withVicuna({}, (loaded) => {
        const { adapters } = loaded;
        const bare = run(loaded, requests);
        loadLoras(loaded);
        expect(adapters.merge(name).merged).toBe(true);
        // the weights are f16, and so are merged ones: the reference's ids are those of an f32 model, below
        const [merged, named] = run(loaded, [requests[0]!, { ...requests[0]!, adapter: name }]);
        expect(merged).toEqual(named);
        expect(merged).not.toEqual(bare[0]);
        expect(() => adapters.identityFor(LORA_NAMES.find((other) => other !== name))).toThrow(/is merged/);
        adapters.unmerge(name);
        expect(run(loaded, requests)).toEqual(bare);
      }),
    );

    it('of an f32 model gives the reference ids', () =>
      withVicuna({ dtype: 'f32' }, (loaded) => {
        loadLoras(loaded);
        for (const name of names) {
          loaded.adapters.merge(name);
          expectReferenceIds(loaded, name, undefined);
          loaded.adapters.unmerge(name);
        }
      }));
  });

  // This and what else is skipped with checks says nothing new of a device.
  describe.skipIf(isChecked(device))('loading and unloading', () => {
    it('leaves nothing behind', () =>
      withVicuna({}, (loaded) => {
        const live = liveTensors();
        for (let i = 0; i < (isEmulated(device) ? 2 : 20); i++) {
          loadLoras(loaded);
          loaded.adapters.merge(LORA_NAMES[i % 4]!);
          loaded.adapters.unmerge(LORA_NAMES[i % 4]!);
          for (const name of LORA_NAMES) loaded.adapters.unload(name);
        }
        expect(liveTensors()).toBe(live);
        expect(loaded.adapters.list()).toEqual([]);
      }));

    it('never finds what a former adapter of the name has left in a cache', () =>
      withVicuna({}, (loaded) => {
        const { adapters } = loaded;
        for (const folder of ['adapter_d_vision', 'adapter_a_standard', 'adapter_d_vision']) {
          adapters.load('same', fixturePath(`lora/${folder}`));
          const [result] = runTogether(loaded, [{ ...requests[0]!, adapter: 'same' }]);
          expect(result!.tokenIds).toEqual(loraIds(folder, 0).slice(0, tokens));
          adapters.unload('same');
        }
      }));

    it('tells of what is loaded', () =>
      withVicuna({}, ({ adapters }) => {
        adapters.load('c', fixturePath('lora/adapter_c_patterns'));
        const info = adapters.load('d', fixturePath('lora/adapter_d_vision'));
        expect(info).toMatchObject({ name: 'd', modules: 9, rank: 4, parts: ['vision'], merged: false });
        expect(adapters.list().map(({ name, rank, parts }) => [name, rank, parts])).toEqual([
          ['c', 12, ['language']],
          ['d', 4, ['vision']],
        ]);
      }));

    it('refuses a name that is taken, an unknown one, and another adapter while one is merged', () =>
      withVicuna({}, ({ adapters }) => {
        const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
        adapters.load('a', fixturePath('lora/adapter_a_standard'));
        expect(() => adapters.load('a', fixturePath('lora/adapter_a_standard'))).toThrow(invalid);
        expect(() => adapters.identityFor('b')).toThrow(/loaded: a/);
        expect(() => adapters.unmerge('a')).toThrow(invalid);
        adapters.merge('a');
        expect(() => adapters.load('b', fixturePath('lora/adapter_b_rslora'))).toThrow(/unmerge it first/);
        adapters.unload('a');
        expect(adapters.list()).toEqual([]);
      }));
  });
});

describe.each(halfRuns)('on $device in $dtype', ({ device, dtype }) => {
  const options = { device, dtype };

  it('requests with an adapter, with another one and with none share a batch: reference logits, the bytes of each alone', async () => {
    const asked = await loraRequests();
    const names = ['adapter_a_standard', undefined, 'adapter_d_vision'];
    const requests = names.map((adapter, i): IdsRequest => ({ ...asked[i]!, adapter, params: FIRST_LOGITS }));
    await withEngine(VICUNA, options, (loaded) => {
      loadLoras(loaded, ['adapter_a_standard', 'adapter_d_vision']);
      const together = runTogether(loaded, requests);
      together.forEach((result, i) => {
        const logits = loraGoldens.floats(`${names[i] ?? 'none'}.r${i}.first_step_logits`);
        expectFirstLogits(result, logits, LOGITS[dtype], String(names[i]));
      });
      expect(requests.map((request) => bytesOf(runTogether(loaded, [request])[0]!))).toEqual(together.map(bytesOf));
    });
  });

  it('an adapter goes on through recorded steps as without them', async () => {
    const [first] = await loraRequests();
    const adapter = 'adapter_c_patterns';
    const request: IdsRequest = { ...first!, adapter, params: { maxNewTokens: 3, logprobs: 2 } };
    const requests = [request, { ...request, adapter: undefined }];
    const bytes: string[][] = [];
    for (const decodeGraphs of [true, false]) {
      await withEngine(VICUNA, { ...options, decodeGraphs }, (loaded) => {
        loadLoras(loaded, [adapter]);
        bytes.push(runTogether(loaded, requests).map(bytesOf));
      });
    }
    expect(bytes[1]).toEqual(bytes[0]);
  });
});
