// What the turns of a chat find in the cache: of a language model that reads from left to right the keys and values of earlier turns,
// none where the image's rows depend on the whole prompt (InstructBLIP) or an encoder reads it in both directions (T5).

import { describe, expect, it } from 'vitest';
import { loadModel } from '../lib/index.js';
import { fixturePath } from './support/fixtures.js';

describe.each([
  ['blip2-opt-tiny', true],
  ['blip2-flant5-tiny', false],
  ['instructblip-vicuna-tiny', false],
  ['instructblip-flant5-tiny', false],
] as const)('a chat with %s', (name, reuses) => {
  it(`${reuses ? 'finds' : 'does not find'} its earlier turns in the cache`, async () => {
    await using model = await loadModel(fixturePath(name), { device: 'cpu', kvCacheTokens: 2048 });
    const chat = model.chat({ images: [fixturePath(name, 'images', 'img0.png')] });
    const first = await chat.send('Is there a dog or a cat in this picture?', { maxNewTokens: 4 });
    const second = await chat.send('What color is it?', { maxNewTokens: 4 });
    expect(first.usage.cachedTokens).toBe(0);
    // the first prompt in whole blocks, of which the last token is always computed
    const whole = 16 * Math.floor((first.usage.promptTokens - 1) / 16);
    expect(second.usage.cachedTokens).toBeGreaterThanOrEqual(reuses ? whole : 0);
    expect(second.usage.cachedTokens > 0).toBe(reuses);
    expect(whole).toBeGreaterThan(0);
  });
});
