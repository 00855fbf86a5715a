// The demonstration model on every device and in every dtype it computes in: reference answers token for token. Asked is what
// the reference was sure of, so that the roundings of 16 bits cannot tip a choice; all 504 questions are asked on the CPU in
// demo-model-reference.test.ts.

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { loadModel } from '../lib/index.js';
import { demoModel } from '../lib/package-files.js';
import { activationDtypes, expectDevices, isEmulated, testDevices } from './support/devices.js';
import { fixturePath } from './support/fixtures.js';

expectDevices();

interface Question {
  image: string;
  prompt: string;
  output_ids: number[];
  min_margin: number;
}

const reference = JSON.parse(readFileSync(fixturePath('emoji-eval', 'reference.json'), 'utf8')) as {
  items: { image: string; questions: Omit<Question, 'image'>[] }[];
};
// far above what 16-bit logits of this model may be off
const SURE = 1;
const sure = reference.items
  .flatMap(({ image, questions }) => questions.map((question) => ({ image, ...question })))
  .filter(({ min_margin, output_ids }) => min_margin > SURE && output_ids.length <= 8);
const runs = testDevices.flatMap((device) =>
  activationDtypes(device).map((dtype) => ({ device, dtype: dtype as 'f32' | 'f16' | 'bf16' })),
);

describe.each(runs)('the demonstration model on $device in $dtype', ({ device, dtype }) => {
  it('gives answers of the reference token for token', async () => {
    const count = isEmulated(device) ? 3 : 24;
    const asked = Array.from({ length: count }, (_, i) => sure[Math.floor((i * sure.length) / count)]!);
    // the emulated GPU is no device of the public types
    const model = await loadModel(demoModel(), { device: device as 'cpu', dtype });
    try {
      const ask = ({ image, prompt }: Question) =>
        model.answer(fixturePath('emoji-eval', ...image.split('/')), prompt, { maxNewTokens: 48 });
      const results = await Promise.all(asked.map(ask));
      expect(results.map(({ tokenIds }) => tokenIds)).toEqual(asked.map(({ output_ids }) => output_ids));
    } finally {
      await model.dispose();
    }
  }, 240_000);
});
