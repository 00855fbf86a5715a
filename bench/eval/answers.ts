// The demonstration model's reference questions, asked all at once.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Model } from '../../lib/index.js';
import { packageRoot } from '../../lib/package-root.js';

const EVALUATION = join(packageRoot(), 'test', 'fixtures', 'emoji-eval');
const MAX_NEW_TOKENS = 48;

interface Reference {
  items: { image: string; questions: { prompt: string; expected: string }[] }[];
}

/** The answer of `model` to each question, and what was expected. */
export async function answerEvaluation(model: Model): Promise<{ text: string; expected: string }[]> {
  const { items } = JSON.parse(readFileSync(join(EVALUATION, 'reference.json'), 'utf8')) as Reference;
  const asked = items.flatMap(({ image, questions }) => questions.map((question) => ({ image, ...question })));
  return Promise.all(
    asked.map(async ({ image, prompt, expected }) => {
      const { text } = await model.answer(join(EVALUATION, image), prompt, { maxNewTokens: MAX_NEW_TOKENS });
      return { text: text.trim(), expected: expected.trim() };
    }),
  );
}
