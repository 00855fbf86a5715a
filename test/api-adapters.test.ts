// Adapters as users have them: by name and request, through the worker.

import { afterEach, describe, expect, it } from 'vitest';
import type { Model } from '../lib/model.js';
import type { QFormerError } from '../lib/errors.js';
import { loadModel } from '../lib/index.js';
import { fixturePath, Goldens } from './support/fixtures.js';

const goldens = new Goldens('lora', 'expected.safetensors');
const [A, B, VISION] = ['adapter_a_standard', 'adapter_b_rslora', 'adapter_d_vision'] as const;
const folder = (name: string): string => fixturePath(`lora/${name}`);
const image = fixturePath('lora/images/img0.png');
const QUESTION = 'What is the man doing in this picture?';
const invalid = { code: 'INVALID_ARGUMENT' };

let model: Model | undefined;
afterEach(async () => {
  await model?.dispose();
  model = undefined;
});

const load = async (): Promise<Model> =>
  (model = await loadModel(fixturePath('instructblip-vicuna-tiny'), { threads: 1 }));

describe('model.adapters', () => {
  it('loads adapters, which requests choose by name, in one batch', async () => {
    const { adapters } = await load();
    await Promise.all([A, B, VISION].map((name) => adapters.load(folder(name), { name })));
    const names = [undefined, A, B, VISION];
    const ask = (adapter: string | undefined) =>
      model!.answer(image, QUESTION, { raw: true, maxNewTokens: 24, ...(adapter !== undefined && { adapter }) });
    const answers = await Promise.all(names.map(ask));
    answers.forEach(({ tokenIds }, i) => {
      expect(tokenIds).toEqual(goldens.ids(`${names[i] ?? 'none'}.r0.greedy_ids`));
    });
    expect(adapters.list().map(({ name, merged }) => [name, merged])).toEqual(
      [A, B, VISION].map((name) => [name, false]),
    );
  });

  it('ranks candidates with the adapter of the call', async () => {
    const { adapters } = await load();
    await adapters.load(folder(A), { name: 'a' });
    const rank = (adapter?: string) =>
      model!.rank(image, QUESTION, ['a dog', 'yes', 'a man'], { raw: true, ...(adapter !== undefined && { adapter }) });
    const bare = await rank();
    const adapted = await rank('a');
    expect(adapted.map(({ sum }) => sum)).not.toEqual(bare.map(({ sum }) => sum));
    await adapters.merge('a');
    // the model is f16, and so are its merged weights
    const merged = new Map((await rank()).map(({ candidate, sum }) => [candidate, sum]));
    for (const { candidate, sum } of adapted) expect(Math.abs(sum - merged.get(candidate)!)).toBeLessThan(0.05);
    await adapters.unmerge('a');
    expect(await rank()).toEqual(bare);
    await expect(rank('b')).rejects.toMatchObject(invalid);
  });

  it('refuses to take an adapter from a request, or the weights from any', async () => {
    const { adapters } = await load();
    await adapters.load(folder(A), { name: 'a' });
    await adapters.load(folder(B), { name: 'b' });
    const running = model!.answer(image, QUESTION, { raw: true, adapter: 'a', maxNewTokens: 200, ignoreEos: true });
    await running[Symbol.asyncIterator]().next();
    const other = model!.answer(image, QUESTION, { raw: true, adapter: 'a', maxNewTokens: 200, ignoreEos: true });
    const refused = adapters.unload('a').catch((error: QFormerError) => error);
    for await (const _ of other) break;
    expect(await refused).toMatchObject({ ...invalid, details: { adapter: 'a' } });
    await running.catch(() => {});
    await adapters.unload('b');
    await adapters.unload('a');
    expect(adapters.list()).toEqual([]);
  });

  it('merges an adapter into the weights and takes it out again', async () => {
    const { adapters } = await load();
    const ask = async () =>
      (await model!.answer(image, QUESTION, { raw: true, maxNewTokens: 12, logprobs: 2 })).logprobs;
    const bare = await ask();
    await adapters.load(folder(VISION), { name: 'v' });
    await adapters.load(folder(A), { name: 'a' });
    expect((await adapters.merge('v')).merged).toBe(true);
    expect(await ask()).not.toEqual(bare);
    await expect(model!.answer(image, QUESTION, { adapter: 'a' })).rejects.toMatchObject(invalid);
    expect(adapters.list().map(({ merged }) => merged)).toEqual([true, false]);
    await adapters.unmerge('v');
    expect(await ask()).toEqual(bare);
  });

  it('names what is wrong', async () => {
    const { adapters } = await load();
    await expect(model!.answer(image, QUESTION, { adapter: 'zh' })).rejects.toMatchObject({
      ...invalid,
      details: { adapter: 'zh', loaded: [] },
    });
    await expect(adapters.load(fixturePath('lora'), { name: 'x' })).rejects.toMatchObject({ code: 'IO' });
    await expect(adapters.load('', { name: 'x' })).rejects.toMatchObject(invalid);
    await expect(adapters.load(folder(A), {} as never)).rejects.toMatchObject(invalid);
    await expect(adapters.load(folder(A), { nmae: 'x' } as never)).rejects.toThrow(/nmae/);
    await expect(adapters.unload('x')).rejects.toMatchObject(invalid);
    expect(() => model!.answer(image, QUESTION, { adapter: 7 as never })).toThrow(/adapter/);
    await model!.dispose();
    await expect(adapters.load(folder(A), { name: 'x' })).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('does not use an encoded image whose features an adapter would change', async () => {
    const { adapters } = await load();
    await adapters.load(folder(VISION), { name: 'v' });
    await adapters.load(folder(A), { name: 'a' });
    const encoded = await model!.encodeImage(image);
    const ask = (adapter: string) => model!.answer(encoded, QUESTION, { raw: true, maxNewTokens: 24, adapter });
    expect((await ask('a')).tokenIds).toEqual(goldens.ids(`${A}.r0.greedy_ids`));
    await expect(ask('v')).rejects.toMatchObject(invalid);
    encoded.dispose();
  });

  it('does not exist for a model that generates no text', async () => {
    model = await loadModel(fixturePath('blip2-itm-tiny'), { threads: 1 });
    await expect(model.adapters.load(folder(A), { name: 'a' })).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  });
});
