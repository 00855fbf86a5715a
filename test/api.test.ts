// The public API over a stand-in engine: requests, streaming, cancellation, disposal and errors of the main thread.

import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadModel } from '../lib/index.js';
import type { Model } from '../lib/model.js';
import { modelDouble, pixel, startDouble } from './support/engine-double/model.js';

let model: Model;
beforeEach(async () => {
  model = await modelDouble();
});
afterEach(() => model.dispose());

const code = (expected: string) => expect.objectContaining({ name: 'QFormerError', code: expected });

function withAbort(): { signal: AbortSignal; abort: () => void } {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

async function collect(stream: AsyncIterable<{ text: string }>): Promise<string[]> {
  const texts: string[] = [];
  for await (const { text } of stream) texts.push(text);
  return texts;
}

describe('a generation', () => {
  it('resolves with the whole result', async () => {
    const result = await model.generate('count 3');
    expect(result).toMatchObject({ text: ' t0 t1 t2', tokenIds: [0, 1, 2], finishReason: 'stop', seed: 7 });
  });

  it('yields its pieces, which make up the text of the result', async () => {
    const generation = model.generate('count 5');
    expect(await collect(generation)).toEqual([' t0', ' t1', ' t2', ' t3', ' t4']);
    expect((await generation).text).toBe(' t0 t1 t2 t3 t4');
  });

  it('may be awaited and iterated at once, and by several loops', async () => {
    const generation = model.generate('count 4');
    const [result, first, second] = await Promise.all([generation, collect(generation), collect(generation)]);
    expect(first.join('')).toBe(result.text);
    expect(second).toEqual(first);
  });

  it('still yields everything to a loop that starts after the end', async () => {
    const generation = model.generate('count 3');
    await generation;
    expect(await collect(generation)).toHaveLength(3);
  });

  it('is cancelled by leaving its loop and then resolves with what there was', async () => {
    const generation = model.generate('wait');
    for await (const _ of generation) break;
    const result = await generation;
    expect(result.finishReason).toBe('abort');
    expect(result.tokenIds.length).toBeGreaterThan(0);
  });

  it('is cancelled by an error thrown in the loop, which passes through', async () => {
    const generation = model.generate('wait');
    const loop = async () => {
      for await (const _ of generation) throw new Error('mine');
    };
    await expect(loop()).rejects.toThrow('mine');
    expect((await generation).finishReason).toBe('abort');
  });

  it('rejects with the error of its request, and the loop throws the same', async () => {
    const generation = model.generate('fail');
    await expect(generation).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', details: { at: 1 } });
    await expect(collect(generation)).rejects.toEqual(code('INVALID_ARGUMENT'));
  });

  it('that fails without anybody listening does not end the process', async () => {
    const seen: unknown[] = [];
    const listen = (reason: unknown) => seen.push(reason);
    process.on('unhandledRejection', listen);
    model.generate('fail');
    await model.generate('count 2');
    await new Promise((resolve) => setTimeout(resolve, 20));
    process.off('unhandledRejection', listen);
    expect(seen).toEqual([]);
  });

  it('leaves other requests alone when it fails or is cancelled', async () => {
    const good = model.generate('count 20');
    const cancelled = model.generate('wait');
    model.generate('fail');
    cancelled.cancel();
    expect((await good).tokenIds).toHaveLength(20);
    expect((await cancelled).finishReason).toBe('abort');
  });

  it('is a promise to Promise.all, catch and finally', async () => {
    let ended = 0;
    const [a] = await Promise.all([model.generate('count 1').finally(() => ended++)]);
    expect(a.tokenIds).toEqual([0]);
    expect(await model.generate('fail').catch(() => 'caught')).toBe('caught');
    expect(ended).toBe(1);
  });
});

describe('an AbortSignal', () => {
  it('rejects the request with ABORTED and its reason as cause', async () => {
    const controller = new AbortController();
    const generation = model.generate('wait', { signal: controller.signal });
    for await (const _ of generation) {
      controller.abort('enough');
      break;
    }
    await expect(generation).rejects.toMatchObject({ code: 'ABORTED', cause: 'enough' });
  });

  it('that has fired before the call rejects without asking the engine', async () => {
    await expect(model.generate('count 2', { signal: AbortSignal.abort() })).rejects.toEqual(code('ABORTED'));
  });

  it('serves any number of requests with one listener, which goes with the last of them', async () => {
    const { signal, abort } = withAbort();
    const running = Array.from({ length: 20 }, () => model.generate('wait', { signal }));
    for await (const _ of model.generate('count 3', { signal }));
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    abort();
    const outcomes = await Promise.allSettled(running);
    for (const outcome of outcomes) expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ABORTED' } });

    const unused = withAbort();
    await Promise.all([1, 2, 3].map((n) => model.generate(`count ${n}`, { signal: unused.signal })));
    expect(getEventListeners(unused.signal, 'abort')).toHaveLength(0);
  });

  it('that fires after the end changes nothing', async () => {
    const controller = new AbortController();
    const generation = model.generate('count 2', { signal: controller.signal });
    await generation;
    controller.abort();
    expect((await generation).finishReason).toBe('stop');
  });

  it('ends a load, whose promise rejects with ABORTED', async () => {
    const controller = new AbortController();
    const start = startDouble('never-ready', controller.signal);
    setTimeout(() => controller.abort(), 10);
    await expect(start).rejects.toEqual(code('ABORTED'));
  });
});

describe('dispose', () => {
  it('rejects running requests with ABORTED', async () => {
    const generation = model.generate('wait');
    const check = expect(generation).rejects.toEqual(code('ABORTED'));
    await model.dispose();
    await check;
  });

  it('rejects a request whose image is still being decoded', async () => {
    const check = expect(model.answer(pixel, 'wait')).rejects.toEqual(code('ABORTED'));
    await model.dispose();
    await check;
  });

  it('may be called twice, also at the same time', async () => {
    await Promise.all([model.dispose(), model.dispose()]);
    await model.dispose();
  });

  it('makes every later use throw ABORTED', async () => {
    const chat = model.chat();
    await model.dispose();
    expect(() => model.generate('count 1')).toThrow(code('ABORTED'));
    expect(() => model.caption(pixel)).toThrow(code('ABORTED'));
    expect(() => model.chat()).toThrow(code('ABORTED'));
    expect(() => chat.send('hello')).toThrow(code('ABORTED'));
    await expect(model.stats()).rejects.toEqual(code('ABORTED'));
  });

  it('is what `Symbol.asyncDispose` calls', async () => {
    await model[Symbol.asyncDispose]();
    expect(() => model.generate('count 1')).toThrow(code('ABORTED'));
  });

  it('of one model leaves another one working', async () => {
    const other = await modelDouble();
    await model.dispose();
    expect((await other.generate('count 2')).tokenIds).toEqual([0, 1]);
    await other.dispose();
  });
});

describe('a worker that dies', () => {
  it('rejects its requests with INTERNAL, refuses later ones and can still be disposed', async () => {
    const waiting = model.generate('wait');
    const check = expect(waiting).rejects.toEqual(code('INTERNAL'));
    await expect(model.generate('die')).rejects.toEqual(code('INTERNAL'));
    await check;
    expect(() => model.generate('count 1')).toThrow(code('INTERNAL'));
    await model.dispose();
  });
});

describe('a request', () => {
  const sent = async (generation: PromiseLike<unknown>) => (await generation) as { request: Record<string, unknown> };

  it('carries the prompt of the architecture, or with raw the text alone', async () => {
    const blip2 = await modelDouble({}, 'double', 'blip-2');
    expect((await sent(model.answer(pixel, 'Why?'))).request.prompt).toBe('Why?');
    expect((await sent(model.caption(pixel))).request.prompt).toBe('A short image caption.');
    expect((await sent(blip2.answer(pixel, 'Why?'))).request.prompt).toBe('Question: Why? Answer:');
    expect((await sent(blip2.answer(pixel, 'Why?', { raw: true }))).request.prompt).toBe('Why?');
    await blip2.dispose();
  });

  it('carries the decoded image and leaves the array of the caller as it was', async () => {
    expect((await sent(model.caption(pixel))).request.images).toEqual([{ bytes: 3, width: 1, height: 1 }]);
    expect(pixel.data).toEqual(new Uint8Array([1, 2, 3]));
  });

  it('samples at temperature 1 when only top-k, top-p or min-p is named', async () => {
    expect((await sent(model.generate('x', { topP: 0.5 }))).request.params).toEqual({ topP: 0.5, temperature: 1 });
    expect((await sent(model.generate('x', { topP: 0.5, temperature: 0 }))).request.params).toEqual({
      topP: 0.5,
      temperature: 0,
    });
    expect((await sent(model.generate('x', { seed: 1 }))).request.params).toEqual({ seed: 1 });
  });

  it('with an image is UNSUPPORTED by a text-only model', async () => {
    const text = await modelDouble({}, 'text-only');
    expect(() => text.caption(pixel)).toThrow(code('UNSUPPORTED'));
    expect((await text.generate('count 1')).tokenIds).toEqual([0]);
    await text.dispose();
  });

  it('with an unreadable image rejects, and the model goes on', async () => {
    await expect(model.caption('no-such-file.png')).rejects.toEqual(code('IO'));
    await expect(model.caption(new Uint8Array([1, 2, 3]))).rejects.toEqual(code('FORMAT'));
    expect((await model.caption(pixel)).finishReason).toBe('stop');
  });
});

describe('wrong arguments', () => {
  it('throw INVALID_ARGUMENT at the call', () => {
    const wrong = [
      () => model.answer(pixel, ''),
      () => model.answer(pixel, ' \n'),
      () => model.answer(pixel, 5 as never),
      () => model.answer(pixel, 'Why?', null as never),
      () => model.generate(''),
      () => model.generate([]),
      () => model.generate([1, -2]),
      () => model.generate([1.5]),
      () => model.generate('x', { maxNewTokens: 0 }),
      () => model.caption(pixel, { lang: 'xx' }),
      () => model.chat({ images: [pixel, pixel] }),
      () => model.chat({ images: pixel as never }),
    ];
    for (const call of wrong) expect(call).toThrow(code('INVALID_ARGUMENT'));
  });

  it('of loadModel reject by name', async () => {
    await expect(loadModel('')).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(loadModel(5 as never)).rejects.toEqual(code('INVALID_ARGUMENT'));
    await expect(loadModel('x', { devise: 'cpu' } as never)).rejects.toThrow(/'devise'.*'device'/);
    await expect(loadModel('x', { threads: -1 })).rejects.toThrow(
      /'threads' must be an integer from 1 to 1024, got -1/,
    );
  });
});
