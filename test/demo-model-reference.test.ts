// The demonstration model against the reference implementation, on every device and in every dtype it computes in: 504 questions on
// 76 images, greedy, token for token (test/fixtures/emoji-eval/reference.json; float32 arithmetic from the same float16 weights). A
// difference is allowed only where the reference itself was undecided: its smallest gap between the best two logits is below what
// the dtype moves. The emulated GPU is asked a sample of the questions, with checks a small one.

import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, type GenerationResult, type Model } from '../lib/index.js';
import { demoModel } from '../lib/package-files.js';
import { expectDevices, isChecked, isUnchecked, loadedFor, runs } from './support/devices.js';
import { fixturePath } from './support/fixtures.js';

expectDevices();

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
/** By the dtype of activations; 16-bit logits of this model are off by far less than 1. */
const UNDECIDED = { f32: 0.01, f16: 1, bf16: 1 };

it('the reference has 504 questions', () => expect(questions).toHaveLength(504));

describe.each(runs)('the demonstration model on $device in $dtype', ({ device, dtype }) => {
  let model: Model;
  beforeAll(async () => {
    // the emulated GPU is no device of the public types
    model = await loadModel(demoModel(), loadedFor({ device, dtype }) as { device: 'cpu' });
  });
  afterAll(() => model.dispose());

  /** Evenly drawn from those with short answers that the reference was sure of. */
  const few = (count: number) => {
    const sure = questions.filter(({ min_margin, output_ids }) => min_margin > 1 && output_ids.length <= 8);
    return Array.from({ length: count }, (_, i) => sure[Math.floor((i * sure.length) / count)]!);
  };
  /** All; on the emulated GPU without checks a part, in 16 bits a smaller one, with them a few. */
  const chosen = () => {
    if (isChecked(device)) return few(3);
    return isUnchecked(device) ? questions.filter((_, i) => i % (dtype === 'f32' ? 9 : 25) === 0) : questions;
  };
  const ask = ({ image, prompt }: { image: string; prompt: string }, options: object): PromiseLike<GenerationResult> =>
    model.answer(fixturePath('emoji-eval', ...image.split('/')), prompt, options);

  it('gives the answers of the reference token for token, the questions in one crowd', async () => {
    const asked = chosen();
    const results = await Promise.all(asked.map((question) => ask(question, { maxNewTokens: 48 })));
    const differing = asked.flatMap((question, i) => {
      const { tokenIds, text, usage } = results[i]!;
      expect(usage.promptTokens, question.prompt).toBe(question.input_ids.length);
      if (tokenIds.join() === question.output_ids.join()) return [];
      return [{ image: question.image, prompt: question.prompt, text, margin: question.min_margin }];
    });
    if (differing.length > 0) console.log('differs from the reference:', differing);
    expect(differing.filter(({ margin }) => margin >= UNDECIDED[dtype])).toEqual([]);
    const sameText = asked.filter((question, i) => results[i]!.text === question.reference_output).length;
    expect(sameText).toBeGreaterThanOrEqual(asked.length - differing.length);
  });

  // With checks in 16 bits alone, where it is faster, without them in f32.
  it.skipIf((isChecked(device) && dtype === 'f32') || (isUnchecked(device) && dtype !== 'f32'))(
    'gives requests of mixed lengths the same bytes together as one by one',
    async () => {
      const count = isChecked(device) ? 4 : isUnchecked(device) ? 24 : 64;
      const mixed = Array.from({ length: count }, (_, i) => questions[(i * 37) % questions.length]!);
      const options = (i: number): object => ({
        maxNewTokens: 1 + ((i * 11) % (isChecked(device) ? 7 : 40)),
        logprobs: true,
        ...(i % 3 === 0 && { temperature: 0.9, topP: 0.95, seed: i }),
        ...(i % 5 === 0 && { repetitionPenalty: 1.2 }),
      });
      const alone: GenerationResult[] = [];
      for (const [i, question] of mixed.entries()) alone.push(await ask(question, options(i)));
      const together = await Promise.all(mixed.map((question, i) => ask(question, options(i))));
      const comparable = ({ text, tokenIds, logprobs, finishReason }: GenerationResult): string =>
        JSON.stringify({ text, tokenIds, logprobs, finishReason });
      expect(together.map(comparable)).toEqual(alone.map(comparable));
      if (!isChecked(device)) expect(new Set(alone.map(({ tokenIds }) => tokenIds.length)).size).toBeGreaterThan(5);
    },
  );
});
