// PEFT adapters against the reference: every kind alone, several in one batch, merged; and that nothing of an adapter shows where
// it is not asked for.

import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, fixturePath, idsSequence, loadEngine, readImage } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { expectClose, Goldens, readJson } from './support/fixtures.js';

const VICUNA = 'instructblip-vicuna-tiny';
const NAMES = ['adapter_a_standard', 'adapter_b_rslora', 'adapter_c_patterns', 'adapter_d_vision'];

interface Expected {
  requests: { prefix: string; image: string }[];
  adapters: Record<string, { greedy_ids: number[][] }>;
  none: { greedy_ids?: number[][] };
  mixed_batches: Record<string, { adapters_by_row: (string | null)[]; greedy_ids: number[][] }>;
}

const expected = readJson<Expected>('lora', 'expected.json');
const goldens = new Goldens('lora', 'expected.safetensors');
/** What a finished answer is followed by in a batch of the reference. */
const PAD = 1000;

let requests: IdsRequest[];
beforeAll(async () => {
  requests = await Promise.all(
    expected.requests.map(async ({ prefix, image }) => ({
      ids: goldens.ids(`${prefix}input_ids`),
      images: [await readImage(fixturePath(`lora/${image}`))],
      instructionIds: goldens.ids(`${prefix}qformer_input_ids`),
      params: { maxNewTokens: 24, logprobs: 3 },
    })),
  );
});

let before: number;
afterEach(() => expect(liveTensors()).toBe(before ?? 0));

async function withEngine(options: LoadOptions, use: (loaded: LoadedEngine) => void | Promise<void>): Promise<void> {
  before = liveTensors();
  const loaded = await loadEngine(VICUNA, options);
  try {
    await use(loaded);
    expect(loaded.engine.blocks.inUse).toBe(0);
  } finally {
    loaded.dispose();
  }
}

const loadAll = ({ adapters }: LoadedEngine): void => {
  for (const name of NAMES) adapters.load(name, fixturePath(`lora/${name}`));
};

/** Runs requests together, each with its adapter. */
function run({ engine, model, adapters }: LoadedEngine, items: [IdsRequest, string | undefined][]) {
  items.forEach(([request, name], id) => {
    const adapter = adapters.identityFor(name);
    engine.add(idsSequence(id, model, { ...request, ...(adapter !== undefined && { adapter }) }));
  });
  const results = finishAll(engine);
  return items.map((_, id) => {
    const { tokenIds, logprobs } = results.get(id)!;
    return { tokenIds, bytes: JSON.stringify(logprobs) };
  });
}

const referenceIds = (name: string | undefined, request: number): number[] =>
  goldens.ids(`${name ?? 'none'}.r${request}.greedy_ids`);

describe('an adapter by request', () => {
  it.each(NAMES)('%s gives the reference ids', (name) =>
    withEngine({}, (loaded) => {
      loadAll(loaded);
      requests.forEach((request, i) => {
        expect(run(loaded, [[request, name]])[0]!.tokenIds).toEqual(referenceIds(name, i));
      });
    }),
  );

  it.each(NAMES)('%s gives the reference logits', (name) =>
    withEngine({}, (loaded) => {
      loadAll(loaded);
      const params = { maxNewTokens: 1, logprobs: 20 };
      const { engine, model, adapters } = loaded;
      requests.forEach((request, i) => {
        engine.add(idsSequence(i, model, { ...request, params, adapter: adapters.identityFor(name)! }));
        const { top } = finishAll(engine).get(i)!.logprobs![0]!;
        const logits = goldens.floats(`${name}.r${i}.first_step_logits`);
        const largest = logits.reduce((a, b) => Math.max(a, b));
        const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest;
        expectClose(
          top!.map(({ logprob }) => logprob),
          top!.map(({ tokenId }) => logits[tokenId]! - total),
          { atol: 1e-3 },
        );
      });
    }),
  );

  it.each(Object.keys(expected.mixed_batches))('batch %s of several adapters gives the reference ids', (name) =>
    withEngine({}, (loaded) => {
      loadAll(loaded);
      const { adapters_by_row, greedy_ids } = expected.mixed_batches[name]!;
      const results = run(
        loaded,
        requests.map((request, i) => [request, adapters_by_row[i] ?? undefined]),
      );
      results.forEach(({ tokenIds }, i) => expect(tokenIds).toEqual(greedy_ids[i]!.filter((id) => id !== PAD)));
    }),
  );

  it.each<[string, LoadOptions]>([
    ['with defaults', {}],
    ['in chunks of 9 tokens, preempted all the time', { maxStepTokens: 9, kvCacheTokens: 64 }],
    ['without caches', { prefixCache: false, imageCacheBytes: 0 }],
  ])('gives eight different requests the bytes they have alone, %s', (_, options) =>
    withEngine({}, async (alone) => {
      loadAll(alone);
      const items = [undefined, ...NAMES, undefined, ...NAMES.slice(0, 2)].map(
        (name, i): [IdsRequest, string | undefined] => [requests[i % 3]!, name],
      );
      const lonely = items.map((item) => run(alone, [item])[0]!);
      const together = await loadEngine(VICUNA, options);
      try {
        loadAll(together);
        expect(run(together, items)).toEqual(lonely);
        expect(run(together, [...items].reverse())).toEqual([...lonely].reverse());
      } finally {
        together.dispose();
      }
    }),
  );

  it('leaves requests without adapter the bytes of a model that has none', () =>
    withEngine({}, async (bare) => {
      const expectedBytes = run(
        bare,
        requests.map((request) => [request, undefined]),
      );
      loadAll(bare);
      expect(
        run(
          bare,
          requests.map((request) => [request, undefined]),
        ),
      ).toEqual(expectedBytes);
      const mixed = requests.flatMap((request): [IdsRequest, string | undefined][] => [
        ...NAMES.map((name): [IdsRequest, string] => [request, name]),
        [request, undefined],
      ]);
      const besideOthers = run(bare, mixed);
      expect(besideOthers.filter((__, i) => i % 5 === 4)).toEqual(expectedBytes);
      requests.forEach((__, i) => expect(expectedBytes[i]!.tokenIds).toEqual(referenceIds(undefined, i)));
    }));

  it('does not depend on which other adapters are loaded', () =>
    withEngine({}, (loaded) => {
      const [first, second] = NAMES as [string, string];
      loaded.adapters.load(first, fixturePath(`lora/${first}`));
      const only = run(loaded, [[requests[0]!, first]]);
      loadAllBut(loaded, first);
      expect(run(loaded, [[requests[0]!, first]])).toEqual(only);
      loaded.adapters.unload(second);
      expect(run(loaded, [[requests[0]!, first]])).toEqual(only);
    }));
});

function loadAllBut({ adapters }: LoadedEngine, but: string): void {
  for (const name of NAMES) if (name !== but) adapters.load(name, fixturePath(`lora/${name}`));
}

describe('quantised weights with adapters', () => {
  it('give a request the same bytes alone and beside others', () =>
    withEngine({ quantize: 'int8' }, (loaded) => {
      loadAll(loaded);
      const items = [undefined, ...NAMES].map((name, i): [IdsRequest, string | undefined] => [requests[i % 3]!, name]);
      const alone = items.map((item) => run(loaded, [item])[0]!);
      expect(run(loaded, items)).toEqual(alone);
    }));
});

describe('adapters that change weights', () => {
  const KINDS = ['dora', 'saved', 'qformer', 'tables', 'bias'];
  const folder = (kind: string): string => fixturePath(`generated/adapters/${kind}`);
  const reference = new Goldens('generated', 'adapters', 'expected.safetensors');

  /** The best tokens' log-probabilities against the reference's logits. */
  function expectLogits({ engine, model, adapters }: LoadedEngine, kind: string, name: string | undefined): void {
    requests.slice(0, 2).forEach((request, i) => {
      const params = { maxNewTokens: 1, logprobs: 20 };
      const adapter = adapters.identityFor(name);
      engine.add(idsSequence(i, model, { ...request, params, ...(adapter !== undefined && { adapter }) }));
      const { top } = finishAll(engine).get(i)!.logprobs![0]!;
      const logits = reference.floats(`${kind}.r${i}.first_step_logits`);
      const largest = logits.reduce((a, b) => Math.max(a, b));
      const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest;
      const [actual, wanted] = [
        top!.map(({ logprob }) => logprob),
        top!.map(({ tokenId }) => logits[tokenId]! - total),
      ];
      expectClose(actual, wanted, { atol: 1e-3 }, `${kind} r${i}`);
    });
  }

  it.each(KINDS)('%s gives the reference logits, by request and merged', (kind) =>
    withEngine({ dtype: 'f32' }, (loaded) => {
      loaded.adapters.load(kind, folder(kind));
      expectLogits(loaded, kind, kind);
      loaded.adapters.merge(kind);
      expectLogits(loaded, kind, undefined);
    }),
  );

  it('share a batch with others, each request with the bytes it has alone', () =>
    withEngine({}, (loaded) => {
      const { adapters } = loaded;
      const bare = run(loaded, [[requests[0]!, undefined]]);
      for (const kind of KINDS) adapters.load(kind, folder(kind));
      loadAll(loaded);
      const items = [...KINDS, undefined, ...NAMES].map((name, i): [IdsRequest, string | undefined] => {
        return [requests[i % 3]!, name];
      });
      const alone = items.map((item) => run(loaded, [item])[0]!);
      expect(run(loaded, items)).toEqual(alone);
      expect(run(loaded, [[requests[0]!, undefined]])).toEqual(bare);
    }));

  it('leave nothing behind', () =>
    withEngine({}, ({ adapters }) => {
      const live = liveTensors();
      for (let i = 0; i < 3; i++) {
        for (const kind of KINDS) {
          adapters.load(kind, folder(kind));
          adapters.merge(kind);
          adapters.unload(kind);
        }
      }
      expect(liveTensors()).toBe(live);
    }));
});

describe('merging', () => {
  it.each(NAMES)('%s gives the reference ids to every request, and unmerging the bare bytes back', (name) =>
    withEngine({}, (loaded) => {
      const { adapters } = loaded;
      const bare = run(
        loaded,
        requests.map((request) => [request, undefined]),
      );
      loadAll(loaded);
      expect(adapters.merge(name).merged).toBe(true);
      // the weights are f16, and so are merged ones: the reference's ids are those of an f32 model, below
      const merged = run(loaded, [
        [requests[0]!, undefined],
        [requests[0]!, name],
      ]);
      expect(merged[0]).toEqual(merged[1]);
      expect(merged[0]!.bytes).not.toEqual(bare[0]!.bytes);
      expect(() => adapters.identityFor(NAMES.find((other) => other !== name))).toThrow(/is merged/);
      adapters.unmerge(name);
      expect(
        run(
          loaded,
          requests.map((request) => [request, undefined]),
        ),
      ).toEqual(bare);
    }),
  );

  it('of an f32 model gives the reference ids', () =>
    withEngine({ dtype: 'f32' }, (loaded) => {
      loadAll(loaded);
      for (const name of NAMES) {
        loaded.adapters.merge(name);
        requests.forEach((request, i) => {
          expect(run(loaded, [[request, undefined]])[0]!.tokenIds).toEqual(referenceIds(name, i));
        });
        loaded.adapters.unmerge(name);
      }
    }));
});

describe('loading and unloading', () => {
  it('leaves nothing behind', () =>
    withEngine({}, (loaded) => {
      const live = liveTensors();
      for (let i = 0; i < 20; i++) {
        loadAll(loaded);
        loaded.adapters.merge(NAMES[i % 4]!);
        loaded.adapters.unmerge(NAMES[i % 4]!);
        for (const name of NAMES) loaded.adapters.unload(name);
      }
      expect(liveTensors()).toBe(live);
      expect(loaded.adapters.list()).toEqual([]);
    }));

  it('never finds what a former adapter of the name has left in a cache', () =>
    withEngine({}, (loaded) => {
      const { adapters } = loaded;
      for (const folder of ['adapter_d_vision', 'adapter_a_standard', 'adapter_d_vision']) {
        adapters.load('same', fixturePath(`lora/${folder}`));
        expect(run(loaded, [[requests[0]!, 'same']])[0]!.tokenIds).toEqual(referenceIds(folder, 0));
        adapters.unload('same');
      }
    }));

  it('tells of what is loaded', () =>
    withEngine({}, ({ adapters }) => {
      adapters.load('c', fixturePath('lora/adapter_c_patterns'));
      const info = adapters.load('d', fixturePath('lora/adapter_d_vision'));
      expect(info).toMatchObject({ name: 'd', modules: 9, rank: 4, parts: ['vision'], merged: false });
      expect(adapters.list().map(({ name, rank, parts }) => [name, rank, parts])).toEqual([
        ['c', 12, ['language']],
        ['d', 4, ['vision']],
      ]);
    }));

  it('refuses a name that is taken, an unknown one, and another adapter while one is merged', () =>
    withEngine({}, ({ adapters }) => {
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
