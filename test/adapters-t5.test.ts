// Adapters of an encoder–decoder model against the reference: both stacks have them, in the batch, in beams and in rankings, and
// nothing that an encoder wrote for one adapter is read with another.

import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { Ranking } from '../lib/engine/ranking.js';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, fixturePath, idsGroup, idsSequence, loadEngine, readImage } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { expectClose, Goldens } from './support/fixtures.js';

const T5 = 'instructblip-flant5-tiny';
const KINDS = ['t5', 't5-dora'];
const CASES = ['c0', 'c1'];

const requestGoldens = new Goldens(T5, 'expected.safetensors');
const reference = new Goldens('generated', 'adapters', 'expected.safetensors');

let requests: IdsRequest[];
beforeAll(async () => {
  requests = await Promise.all(
    CASES.map(async (name) => ({
      ids: requestGoldens.ids(`${name}.input_ids`),
      images: [await readImage(fixturePath(`${T5}/images/img0.png`))],
      instructionIds: requestGoldens.ids(`${name}.qformer_input_ids`),
      eosTokenIds: [1],
    })),
  );
});

let before: number;
afterEach(() => expect(liveTensors()).toBe(before));

async function withEngine(options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> {
  before = liveTensors();
  const loaded = await loadEngine(T5, { dtype: 'f32', ...options });
  try {
    for (const kind of KINDS) loaded.adapters.load(kind, fixturePath(`generated/adapters/${kind}`));
    use(loaded);
    expect(loaded.engine.blocks.inUse).toBe(0);
  } finally {
    loaded.dispose();
  }
}

/** A request with an adapter, and the ids that the reference gives it: greedy, or the best of three beams. */
interface Item {
  request: IdsRequest;
  kind: string | undefined;
  expected: number[];
}

function itemsOf(beams: 1 | 3): Item[] {
  const params = { maxNewTokens: beams === 1 ? 24 : 12, numBeams: beams };
  return [...KINDS, undefined].flatMap((kind) =>
    requests.flatMap((request, i): Item[] => {
      if (kind === undefined && beams === 3) return [];
      const goldens = kind === undefined ? requestGoldens : reference;
      const name = `${kind === undefined ? '' : `${kind}.`}${CASES[i]}.${beams === 1 ? 'greedy' : 'beam3'}_ids`;
      return [{ request: { ...request, params }, kind, expected: goldens.ids(name) }];
    }),
  );
}

const withAdapter = ({ adapters }: LoadedEngine, request: IdsRequest, kind: string | undefined): IdsRequest => {
  const adapter = adapters.identityFor(kind);
  return { ...request, ...(adapter !== undefined && { adapter }) };
};

/** The ids of all items, computed together. */
function run(loaded: LoadedEngine, items: readonly Item[]): number[][] {
  const { engine, model } = loaded;
  items.forEach(({ request, kind }, id) => engine.add(idsGroup(id, model, withAdapter(loaded, request, kind))));
  const results = finishAll(engine);
  return items.map((_, id) => results.get(id)!.tokenIds);
}

const expectedOf = (items: readonly Item[]): number[][] => items.map(({ expected }) => expected);

describe('adapters of encoder and decoder', () => {
  it.each(KINDS)('%s gives the reference logits, by request and merged', (kind) =>
    withEngine({}, (loaded) => {
      const { engine, model, adapters } = loaded;
      // leaves what the bare model makes of the images in the cache
      run(loaded, itemsOf(1).slice(-2));
      const check = (name: string | undefined): void =>
        requests.forEach((request, i) => {
          const params = { maxNewTokens: 1, logprobs: 20 };
          engine.add(idsSequence(i, model, withAdapter(loaded, { ...request, params }, name)));
          const { top } = finishAll(engine).get(i)!.logprobs![0]!;
          const logits = reference.floats(`${kind}.${CASES[i]}.first_step_logits`);
          const largest = logits.reduce((a, b) => Math.max(a, b));
          const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest;
          expectClose(
            top!.map(({ logprob }) => logprob),
            top!.map(({ tokenId }) => logits[tokenId]! - total),
            { atol: 1e-3 },
          );
        });
      check(kind);
      adapters.merge(kind);
      check(undefined);
    }),
  );

  it.each<[string, LoadOptions]>([
    ['with defaults', {}],
    ['in chunks of 9 tokens in a small pool', { maxStepTokens: 9, kvCacheTokens: 96 }],
    ['without caches', { prefixCache: false, imageCacheBytes: 0 }],
  ])('give the reference ids in one batch, %s', (_, options) =>
    withEngine(options, (loaded) => {
      const items = itemsOf(1);
      expect(run(loaded, items)).toEqual(expectedOf(items));
      // again, now with what the caches hold
      expect(run(loaded, [...items].reverse())).toEqual(expectedOf(items).reverse());
    }),
  );

  it('are those of all beams of a request', () =>
    withEngine({}, (loaded) => {
      const items = itemsOf(3);
      expect(run(loaded, [...items, ...itemsOf(1)])).toEqual(expectedOf([...items, ...itemsOf(1)]));
    }));

  it('score the candidates of a ranking as the answers of a greedy search', () =>
    withEngine({}, (loaded) => {
      const { engine, model } = loaded;
      for (const kind of [...KINDS, undefined]) {
        const answer = itemsOf(1)
          .find((item) => item.kind === kind)!
          .expected.slice(0, 6);
        const request = withAdapter(loaded, { ...requests[0]!, params: { maxNewTokens: 6, logprobs: 0 } }, kind);
        engine.add(idsSequence(1, model, request));
        const greedy = finishAll(engine)
          .get(1)!
          .logprobs!.map(({ logprob }) => logprob);
        engine.add(new Ranking(idsSequence(2, model, request), [[7, 8], answer, [9]]));
        // beside a request with another adapter
        engine.add(idsSequence(3, model, withAdapter(loaded, requests[0]!, kind === 't5' ? 't5-dora' : 't5')));
        const { candidates } = finishAll(engine).get(2)!;
        expectClose(candidates![1]!.logprobs, greedy, { atol: 1e-5 });
      }
    }));
});
