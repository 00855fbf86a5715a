// The requests of the reference models with what the reference gives for them: ids of greedy decoding, five beams with scores
// under both length penalties, and the cases with rules or other ends.

import { expect } from 'vitest';
import type { EngineResult } from '../../lib/engine/protocol.js';
import { fixturePath, readImage, type IdsRequest, type LoadOptions } from './engine-models.js';
import { readFixture, type Fixture } from './safetensors-fixture.js';

/** Five answers, best first; `ids` are filled up behind `lengths`. */
export interface BeamCase {
  ids: number[][];
  scores: number[];
  lengths: number[];
}

interface FixtureCase {
  prefix: string;
  image?: string;
  eos_token_id?: number[];
  generation_options?: { repetition_penalty?: number; no_repeat_ngram_size?: number; min_new_tokens?: number };
  greedy_ids: number[][];
  beam5_lp1?: BeamCase;
  beam5_lpm1?: BeamCase;
}

type Expected = Fixture<{ cases: FixtureCase[]; token_ids?: { eos: number } }>;

/** One prompt, decoded greedily. */
export interface ReferenceRequest {
  name: string;
  request: IdsRequest;
  ids: number[];
}

/** One without rules, which is searched with beams as well. */
export interface PlainRequest extends ReferenceRequest {
  logprobs: number[];
  beams: { lp1: BeamCase; lpm1: BeamCase };
}

/** Every fixture model that generates, and where its folders are if not under its name. */
export const REFERENCE_MODELS: { name: string; folders?: LoadOptions }[] = [
  { name: 'instructblip-vicuna-tiny' },
  { name: 'instructblip-flant5-tiny' },
  { name: 'blip2-opt-tiny' },
  { name: 'blip2-flant5-tiny' },
  {
    name: 'ziya-visual-tiny',
    folders: { dir: fixturePath('ziya-visual-tiny/visual'), languageModel: fixturePath('ziya-visual-tiny/llm') },
  },
  { name: 'llama-gqa-tiny' },
];

/** The single requests of a model. */
export async function plainRequests(name: string): Promise<PlainRequest[]> {
  const fixture: Expected = readFixture(name);
  const singles = fixture.json.cases.filter((each) => each.beam5_lp1 !== undefined && !each.prefix.startsWith('batch'));
  return Promise.all(
    singles.map(async ({ prefix, greedy_ids, beam5_lp1, beam5_lpm1 }) => ({
      name: `${name} ${prefix}`,
      request: { ...(await inputOf(name, fixture, prefix)), params: { maxNewTokens: greedy_ids[0]!.length } },
      ids: greedy_ids[0]!,
      logprobs: fixture.tensors.get(`${prefix}greedy_step_logprobs`)!,
      beams: { lp1: beam5_lp1!, lpm1: beam5_lpm1! },
    })),
  );
}

/** What of them the emulated GPU with checks is asked: `count` requests, those with the shortest prompts, each for its first `tokens` tokens. */
export const shortened = (requests: readonly PlainRequest[], count: number, tokens: number): PlainRequest[] =>
  shortest(requests, count).map(({ request, ids, logprobs, ...rest }) => ({
    ...rest,
    request: { ...request, params: { ...request.params, maxNewTokens: tokens } },
    ids: ids.slice(0, tokens),
    logprobs: logprobs.slice(0, tokens),
  }));

/** The requests with the shortest prompts, in their order. */
export function shortest(requests: readonly PlainRequest[], count: number): PlainRequest[] {
  const lengths = requests.map(({ request }) => request.ids.length).sort((a, b) => a - b);
  return requests.filter(({ request }) => request.ids.length <= lengths[count - 1]!).slice(0, count);
}

/** Those with penalties, bans and least lengths, and one with a second end token. */
export async function ruledRequests(name: string): Promise<ReferenceRequest[]> {
  const fixture: Expected = readFixture(name);
  const { cases, token_ids } = fixture.json;
  const ruled = await Promise.all(
    cases
      .filter(({ generation_options }) => generation_options !== undefined)
      .map(async ({ prefix, generation_options: rules, greedy_ids }): Promise<ReferenceRequest> => {
        const params = {
          maxNewTokens: 24,
          repetitionPenalty: rules!.repetition_penalty,
          noRepeatNgramSize: rules!.no_repeat_ngram_size,
          minNewTokens: rules!.min_new_tokens,
        };
        const request = { ...(await inputOf(name, fixture, prefix.slice(-3))), params };
        return { name: `${name} ${prefix}`, request, ids: greedy_ids[0]! };
      }),
  );
  const early = cases.find(({ prefix }) => prefix === 'batch_eos.');
  if (early === undefined) return ruled;
  // its first row is the prompt that begins its answer in the same way
  const [row] = early.greedy_ids as [number[]];
  const { prefix } = cases.find((each) => /^c\d\.$/.test(each.prefix) && each.greedy_ids[0]![0] === row[0])!;
  const extra = early.eos_token_id!.find((id) => id !== token_ids!.eos)!;
  const request = {
    ...(await inputOf(name, fixture, prefix)),
    eosTokenIds: early.eos_token_id!,
    params: { maxNewTokens: 24 },
  };
  return [...ruled, { name: `${name} batch_eos.`, request, ids: row.slice(0, row.indexOf(extra) + 1) }];
}

async function inputOf(name: string, { json, tensors }: Expected, prefix: string): Promise<IdsRequest> {
  const { image } = json.cases.find((each) => each.prefix === prefix)!;
  const instructionIds = tensors.get(`${prefix}qformer_input_ids`);
  return {
    ids: tensors.get(`${prefix}input_ids`) ?? tensors.get(`${prefix}text_ids`)!,
    eosTokenIds: [json.token_ids?.eos ?? 2],
    ...(image !== undefined && { images: [await readImage(`${fixturePath(name)}/${image}`)] }),
    ...(instructionIds && { instructionIds }),
  };
}

/** The request with five beams, all returned. */
export const withBeams = (request: IdsRequest, lengthPenalty: number): IdsRequest => ({
  ...request,
  params: { ...request.params, numBeams: 5, numReturnSequences: 5, lengthPenalty },
});

/** Ids exactly, scores within the relative 1e-4 of the fixtures. */
export function expectBeams({ beams, tokenIds }: EngineResult, expected: BeamCase, name: string): void {
  const answers = expected.ids.map((ids, i) => ids.slice(0, expected.lengths[i]));
  expect(
    beams!.map((beam) => beam.tokenIds),
    name,
  ).toEqual(answers);
  expect(tokenIds).toEqual(answers[0]);
  beams!.forEach(({ score }, i) => {
    const reference = expected.scores[i]!;
    expect(Math.abs(score - reference), `${name} score ${i}`).toBeLessThan(1e-4 * Math.abs(reference));
  });
}
