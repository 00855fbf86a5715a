// The mixture of requests that the soak sends: pictures and plain text, English and Chinese, short and long, greedy and drawn,
// with stop strings, log-probabilities and penalties. Request number i is the same in every run.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { GenerateOptions, Generation, Model } from '../../lib/index.js';
import { SAMPLES } from '../model/package.js';

const IMAGES = [
  'butterfly_top_sunflower_bottom.png',
  'cat_left_apple_right.png',
  'fox_noto.png',
  'panda_fluent.png',
  'pizza_fluent_flat.png',
  'rocket_noto.png',
].map((name) => readFileSync(join(SAMPLES, name)));

const QUESTIONS = [
  'What is at the top?',
  '下面是什么？',
  'What is on the left?',
  '右边是什么？',
  'Describe the image.',
  '描述这张图片。',
  'What is this? '.repeat(8),
  '这是什么🦊？',
];

const SETTINGS: readonly GenerateOptions[] = [
  {},
  { temperature: 0.8, topP: 0.9 },
  { temperature: 1.2, topK: 20, minP: 0.02 },
  { repetitionPenalty: 1.3, noRepeatNgramSize: 2 },
  { logprobs: 3 },
  { stop: ['。', '.'] },
  { ignoreEos: true },
];

const LENGTHS = [1, 4, 40, 9, 17, 24, 2, 33];

/** Starts request `i`. */
export function startRequest(model: Model, i: number, extra: GenerateOptions = {}): Generation {
  const image = IMAGES[i % IMAGES.length]!;
  const question = QUESTIONS[i % QUESTIONS.length]!;
  const options: GenerateOptions = {
    ...SETTINGS[i % SETTINGS.length],
    maxNewTokens: LENGTHS[(i * 5 + (i >> 3)) % LENGTHS.length]!,
    seed: i,
    ...extra,
  };
  switch (i % 5) {
    case 0:
      return model.caption(image, { ...options, lang: i % 2 === 0 ? 'en' : 'zh' });
    case 1:
      return model.generate(question, { ...options });
    case 2:
      return model.generate(question, { ...options, image });
    default:
      return model.answer(image, question, options);
  }
}

/** Starts a request that must fail; the code of its error. */
export function startBadRequest(model: Model, i: number): { run: () => PromiseLike<unknown>; code: string } {
  switch (i % 4) {
    case 0:
      return { run: () => model.answer(Buffer.from('no image at all'), 'What is this?'), code: 'FORMAT' };
    case 1:
      return { run: () => model.generate(Array<number>(100_000).fill(7)), code: 'INVALID_ARGUMENT' };
    case 2:
      return { run: () => model.caption(join(SAMPLES, 'missing.png')), code: 'IO' };
    default:
      return { run: () => model.generate('x', { temperature: -1 }), code: 'INVALID_ARGUMENT' };
  }
}
