// sharp is loaded with the first encoded image and not before, so that text-only users never need it.

import { expect, test, vi } from 'vitest';

import { loadImage } from '../lib/io/image.js';
import { expectRejection } from './support/expect-error.js';

const loaded = vi.hoisted(() => ({ count: 0 }));
vi.mock('sharp', () => {
  loaded.count++;
  throw new Error('no binary for this platform');
});

test('pixels load without sharp', async () => {
  const { data } = await loadImage({ data: new Uint8Array([7]), width: 1, height: 1, channels: 1 });
  expect([...data, loaded.count]).toEqual([7, 7, 7, 0]);
});

test('an encoded image without a usable sharp is UNSUPPORTED, each time anew', async () => {
  const signature = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1');
  for (let i = 0; i < 2; i++) {
    await expectRejection(loadImage(signature), 'UNSUPPORTED', 'images need the package sharp, which cannot be loaded');
  }
  expect(loaded.count).toBeGreaterThan(0);
});
