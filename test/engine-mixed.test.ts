// Eight different requests at once on every vision-language fixture: other images, prompts, rules, ends and samples. Each must
// give what the reference gives for it, or where it samples what it gives alone, whatever else is in the batch.
import { beforeAll, describe, expect, it } from 'vitest';
import type { GenerateParams } from '../lib/engine/params.js';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, fixturePath, idsSequence, loadEngine, readImage } from './support/engine-models.js';
import type { IdsRequest, LoadedEngine, LoadOptions } from './support/engine-models.js';
import { readFixture, type Fixture } from './support/safetensors-fixture.js';

interface FixtureCase {
  prefix: string;
  image?: string;
  eos_token_id?: number[];
  generation_options?: { repetition_penalty?: number; no_repeat_ngram_size?: number; min_new_tokens?: number };
  greedy_ids: number[][];
}

type Expected = Fixture<{ cases: FixtureCase[]; token_ids: { eos: number } }>;

interface Mixed {
  what: string;
  request: IdsRequest;
  /** What the reference gives; absent where tokens are drawn. */
  ids?: number[];
}

/** The single cases, those with rules, the batch that ends early, and three that sample. */
async function mixedRequests(fixture: string, { json, tensors }: Expected): Promise<Mixed[]> {
  const inputOf = async (single: string): Promise<IdsRequest> => {
    const instructionIds = tensors.get(`${single}qformer_input_ids`);
    const { image } = json.cases.find(({ prefix }) => prefix === single)!;
    return {
      ids: tensors.get(`${single}input_ids`)!,
      images: [await readImage(`${fixturePath(fixture)}/${image}`)],
      ...(instructionIds && { instructionIds }),
      eosTokenIds: [json.token_ids.eos],
    };
  };
  const mixed: Mixed[] = [];
  const singles = json.cases.filter(({ prefix }) => /^c\d\.$/.test(prefix));
  for (const { prefix, greedy_ids } of json.cases) {
    if (!/^(?:opt_\w+\.)?c\d\.$/.test(prefix)) continue;
    const { generation_options: rules = {} } = json.cases.find((other) => other.prefix === prefix)!;
    const ids = greedy_ids[0]!;
    const params: GenerateParams = {
      maxNewTokens: 24,
      repetitionPenalty: rules.repetition_penalty,
      noRepeatNgramSize: rules.no_repeat_ngram_size,
      minNewTokens: rules.min_new_tokens,
    };
    mixed.push({ what: prefix, request: { ...(await inputOf(prefix.slice(-3))), params }, ids });
  }
  const early = json.cases.find(({ prefix }) => prefix === 'batch_eos.')!;
  const first = singles.find(({ greedy_ids }) => greedy_ids[0]![0] === early.greedy_ids[0]![0])!;
  const [eos, extra] = early.eos_token_id!;
  const stopping = early.greedy_ids[0]!;
  mixed.push({
    what: 'batch_eos',
    request: { ...(await inputOf(first.prefix)), eosTokenIds: [eos!, extra!], params: { maxNewTokens: 24 } },
    ids: stopping.slice(0, stopping.indexOf(extra!) + 1),
  });
  for (const [i, { prefix }] of singles.slice(0, 3).entries()) {
    const params = {
      maxNewTokens: 11 + i,
      temperature: 0.7 + 0.2 * i,
      topK: 40 * i,
      topP: 0.95,
      seed: 5 + i,
      logprobs: 2,
    };
    mixed.push({ what: `sampled ${prefix}`, request: { ...(await inputOf(prefix)), params } });
  }
  return mixed;
}

describe.each(['instructblip-vicuna-tiny', 'instructblip-flant5-tiny', 'blip2-opt-tiny', 'blip2-flant5-tiny'])(
  '%s',
  (fixture) => {
    let mixed: Mixed[];
    let alone: string[];

    beforeAll(async () => {
      mixed = await mixedRequests(fixture, readFixture(fixture));
      alone = [];
      await withEngine({}, ({ engine, model }) => {
        for (const { request } of mixed) {
          engine.add(idsSequence(1, model, request));
          alone.push(summary(finishAll(engine).get(1)!));
        }
      });
    });

    async function withEngine(options: LoadOptions, use: (loaded: LoadedEngine) => void): Promise<void> {
      const before = liveTensors();
      const loaded = await loadEngine(fixture, options);
      use(loaded);
      expect(loaded.engine.blocks.inUse).toBe(0);
      loaded.dispose();
      expect(liveTensors()).toBe(before);
    }

    it('gives the ids of the reference under every rule, one request at a time', () => {
      expect(mixed.length).toBeGreaterThanOrEqual(8);
      const known = mixed.flatMap(({ what, ids }, i) => (ids === undefined ? [] : [{ what, ids, got: alone[i]! }]));
      expect(known.length).toBeGreaterThanOrEqual(5);
      for (const { what, ids, got } of known)
        expect((JSON.parse(got) as { tokenIds: number[] }).tokenIds, what).toEqual(ids);
    });

    it.each<[string, LoadOptions]>([
      ['in one batch of eight', { maxBatchSize: 8 }],
      ['in a pool that has room for two', { kvCacheTokens: 128, prefixCache: false }],
    ])('gives each the same bytes %s', async (_, options) => {
      await withEngine(options, ({ engine, model }) => {
        mixed.forEach(({ request }, id) => engine.add(idsSequence(id, model, request)));
        const results = finishAll(engine);
        mixed.forEach(({ what }, id) => expect(summary(results.get(id)!), what).toBe(alone[id]));
      });
    });

    it('gives each the same bytes when they arrive while others run', async () => {
      await withEngine({ maxBatchSize: 8 }, ({ engine, model }) => {
        let next = 0;
        const arrive = (): void => {
          if (next < mixed.length) engine.add(idsSequence(next, model, mixed[next++]!.request));
        };
        arrive();
        const results = finishAll(engine, arrive);
        mixed.forEach(({ what }, id) => expect(summary(results.get(id)!), what).toBe(alone[id]));
      });
    });
  },
);

const summary = ({
  tokenIds,
  finishReason,
  logprobs,
}: {
  tokenIds: number[];
  finishReason: string;
  logprobs?: unknown;
}) => JSON.stringify({ tokenIds, finishReason, logprobs });
