// The demonstration model against the reference implementation: 504 questions on 76 images, greedy, token for token
// (test/fixtures/emoji-eval/reference.json; float32 arithmetic from the same float16 weights). A difference is allowed only
// where the reference itself was undecided: its smallest gap between the best two logits is below 0.01.

import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, type GenerationResult, type Model } from '../lib/index.js';
import { demoModel } from '../lib/package-files.js';
import { fixturePath } from './support/fixtures.js';

interface Question {
  prompt: string;
  reference_output: string;
  input_ids: number[];
  output_ids: number[];
  min_margin: number;
}

const reference = JSON.parse(readFileSync(fixturePath('emoji-eval', 'reference.json'), 'utf8')) as {
  items: { image: string; questions: Question[] }[];
};
const questions = reference.items.flatMap(({ image, questions }) =>
  questions.map((question) => ({ image, ...question })),
);
const UNDECIDED = 0.01;

let model: Model;
beforeAll(async () => {
  model = await loadModel(demoModel());
});
afterAll(() => model.dispose());

const ask = ({ image, prompt }: { image: string; prompt: string }): PromiseLike<GenerationResult> =>
  model.answer(fixturePath('emoji-eval', ...image.split('/')), prompt, { maxNewTokens: 48 });

describe('the demonstration model', () => {
  it('has 504 reference questions', () => expect(questions).toHaveLength(504));

  it('gives the answers of the reference token for token, all questions in one crowd', async () => {
    const results = await Promise.all(questions.map(ask));
    const differing = questions.flatMap((question, i) => {
      const { tokenIds, text, usage } = results[i]!;
      expect(usage.promptTokens, question.prompt).toBe(question.input_ids.length);
      if (tokenIds.join() === question.output_ids.join()) return [];
      return [{ image: question.image, prompt: question.prompt, text, margin: question.min_margin }];
    });
    if (differing.length > 0) console.log('differs from the reference:', differing);
    expect(differing.filter(({ margin }) => margin >= UNDECIDED)).toEqual([]);
    const sameText = questions.filter((question, i) => results[i]!.text === question.reference_output).length;
    expect(sameText).toBeGreaterThanOrEqual(504 - differing.length);
  }, 120_000);

  it('gives 64 requests of mixed lengths the same bytes together as one by one', async () => {
    const mixed = Array.from({ length: 64 }, (_, i) => questions[(i * 37) % questions.length]!);
    const options = (i: number): object => ({
      maxNewTokens: 1 + ((i * 11) % 40),
      logprobs: true,
      ...(i % 3 === 0 && { temperature: 0.9, topP: 0.95, seed: i }),
      ...(i % 5 === 0 && { repetitionPenalty: 1.2 }),
    });
    const run = (question: (typeof mixed)[number], i: number): PromiseLike<GenerationResult> =>
      model.answer(fixturePath('emoji-eval', ...question.image.split('/')), question.prompt, options(i));
    const alone: GenerationResult[] = [];
    for (const [i, question] of mixed.entries()) alone.push(await run(question, i));
    const together = await Promise.all(mixed.map(run));
    const comparable = ({ text, tokenIds, logprobs, finishReason }: GenerationResult): string =>
      JSON.stringify({ text, tokenIds, logprobs, finishReason });
    expect(together.map(comparable)).toEqual(alone.map(comparable));
    expect(new Set(alone.map(({ tokenIds }) => tokenIds.length)).size).toBeGreaterThan(5);
  }, 120_000);
});
