// Memory of decoded pixels: what the worker gives back serves the images that come next, and shows none of them another.
import { describe, expect, test } from 'vitest';
import type { EngineRequest, RequestImage } from '../lib/engine/protocol.js';
import { loadImage } from '../lib/io/image.js';
import { PixelBuffers } from '../lib/io/pixel-buffers.js';
import { fixturePath } from './support/engine-models.js';
import { bundle, startClient } from './support/engine-worker.js';

describe('memory given back', () => {
  const MIB = 2 ** 20;
  const taken = (buffers: PixelBuffers, bytes: number): ArrayBuffer => buffers.take(bytes).buffer;

  test('takes the next image, whose pixels are all its own', async () => {
    for (const name of ['odd.png', 'cmyk.jpg', 'gray16.png', 'gray.png']) {
      const alone = await loadImage(fixturePath(`preprocess/images/${name}`));
      const buffers = new PixelBuffers();
      const used = new ArrayBuffer(alone.data.length + 1000);
      new Uint8Array(used).fill(77);
      buffers.giveBack([used]);
      const again = await loadImage(fixturePath(`preprocess/images/${name}`), {}, buffers);
      expect(again.data.buffer).toBe(used);
      expect(again).toEqual(alone);
    }
    const buffers = new PixelBuffers();
    const used = new Uint8Array(100).fill(77).buffer;
    buffers.giveBack([used]);
    const gray = await loadImage({ data: new Uint8Array([1, 2]), width: 2, height: 1, channels: 1 }, {}, buffers);
    expect(gray.data.buffer).toBe(used);
    expect([...gray.data]).toEqual([1, 1, 1, 2, 2, 2]);
  });

  test('serves whom it fits best, once', () => {
    const buffers = new PixelBuffers();
    const [large, small] = [new ArrayBuffer(200), new ArrayBuffer(100)];
    buffers.giveBack([large, small, new ArrayBuffer(0)]);
    expect(buffers.bytes).toBe(300);
    expect(taken(buffers, 90)).toBe(small);
    expect(taken(buffers, 90)).toBe(large);
    expect(taken(buffers, 90).byteLength).toBe(90);
    buffers.giveBack([small]);
    expect(taken(buffers, 101).byteLength).toBe(101);
    expect(taken(buffers, 100)).toBe(small);
    expect(buffers.bytes).toBe(0);
  });

  test('is bounded, and the largest stay', () => {
    const buffers = new PixelBuffers();
    for (let i = 0; i < 10; i++) buffers.giveBack([new ArrayBuffer(5 * MIB), new ArrayBuffer(3 * MIB)]);
    expect(buffers.bytes).toBe(30 * MIB);
    buffers.giveBack([new ArrayBuffer(33 * MIB)]);
    expect(buffers.bytes).toBe(30 * MIB);
    buffers.giveBack([new ArrayBuffer(32 * MIB)]);
    expect(buffers.bytes).toBe(32 * MIB);
    expect(taken(buffers, 1).byteLength).toBe(32 * MIB);
  });

  test('comes from every image whose request was answered, refused or cancelled', async () => {
    const dir = fixturePath('instructblip-vicuna-tiny');
    const worker = bundle('lib/engine/worker.ts');
    const client = await startClient(worker.url, dir);
    const { data, width, height } = await loadImage(`${dir}/images/img0.png`);
    const take = (): RequestImage => {
      const copy = client.pixelBuffers.take(data.length);
      copy.set(data);
      return { data: copy, width, height };
    };
    const submit = (request: Partial<EngineRequest>) =>
      client.submit({ prompt: 'a', images: [take()], ...request }, { transferImages: true });
    const first = await submit({}).done;
    expect(client.pixelBuffers.bytes).toBe(data.length);
    const second = submit({});
    expect(client.pixelBuffers.bytes).toBe(0);
    expect((await second.done).text).toBe(first.text);
    expect(client.pixelBuffers.bytes).toBe(data.length);
    await expect(submit({ images: [{ ...take(), width: 1 }] }).done).rejects.toThrow('bytes');
    expect(client.pixelBuffers.bytes).toBe(data.length);
    const long = submit({ params: { maxNewTokens: 1000, ignoreEos: true } });
    long.abort();
    expect((await long.done).finishReason).toBe('abort');
    expect(client.pixelBuffers.bytes).toBe(data.length);
    await client.run({ kind: 'hold', image: take() }).done;
    expect(client.pixelBuffers.bytes).toBe(data.length);
    expect((await submit({}).done).text).toBe(first.text);
    expect(await client.close()).toEqual({ liveTensors: 0 });
    worker.remove();
  });
});
