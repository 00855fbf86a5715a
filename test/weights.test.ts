// Declaring, checking and loading weights: everything wrong with a checkpoint is told at once, and a load that fails or is
// aborted leaves nothing behind.

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { isQFormerError, type QFormerError } from '../lib/errors.js';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import { createModel } from '../lib/models/registry.js';
import { Weights } from '../lib/models/weights.js';
import { ANY, Parameter } from '../lib/nn/parameter.js';
import { liveTensors, ops } from '../lib/tensor/index.js';
import { expectDevices, isEmulated, testDevices } from './support/devices.js';
import { expectNoLeaks, expectSameBits, fixturePath, Goldens } from './support/fixtures.js';
import { withEditedCheckpoint, type Header } from './support/models.js';

expectDevices();

const CPU = { device: 'cpu', dtype: 'auto' } as const;

/** What `check` says about a checkpoint whose header was edited. */
async function faultOf(fixture: string, edit: (header: Header) => void): Promise<QFormerError> {
  let fault: unknown;
  await withEditedCheckpoint(fixture, edit, (dir) => {
    const checkpoint = openCheckpoint(dir);
    const weights = new Weights(checkpoint, CPU);
    createModel(checkpoint, weights);
    try {
      weights.check();
    } catch (error) {
      fault = error;
    }
  });
  if (!isQFormerError(fault)) throw new Error('check found nothing');
  return fault;
}

function rename(header: Header, from: string, to: string): void {
  header[to] = header[from]!;
  delete header[from];
}

describe('checking', () => {
  expectNoLeaks();

  it.each(['instructblip-vicuna-tiny', 'llama-gqa-tiny', 'generated/blip2-llama-tiny'])('accepts %s', (fixture) => {
    const checkpoint = openCheckpoint(fixturePath(fixture));
    const weights = new Weights(checkpoint, CPU);
    createModel(checkpoint, weights);
    expect(() => weights.check()).not.toThrow();
  });

  it('names every missing, surplus, mis-shaped and mistyped tensor in one FORMAT error', async () => {
    const fault = await faultOf('instructblip-vicuna-tiny', (header) => {
      rename(header, 'query_tokens', 'extra.tokens');
      rename(header, 'vision_model.post_layernorm.bias', 'vision_model.post_layernorm.beta');
      header['language_projection.weight']!.shape = [64, 160];
      header['vision_model.embeddings.class_embedding']!.shape = [176];
      header['qformer.embeddings.layernorm.weight']!.dtype = 'I16';
    });
    expect(fault.code).toBe('FORMAT');
    expect(fault.details.missing).toEqual(expect.arrayContaining(['query_tokens', 'vision_model.post_layernorm.bias']));
    expect(fault.details.missing).toHaveLength(2);
    expect(fault.details.surplus).toEqual(expect.arrayContaining(['extra.tokens', 'vision_model.post_layernorm.beta']));
    expect(fault.details.surplus).toHaveLength(2);
    expect(fault.details.mismatched).toEqual(
      expect.arrayContaining([
        'language_projection.weight is [64, 160], must be [160, 64]',
        'vision_model.embeddings.class_embedding is [176], must be [1, 1, 176]',
        'qformer.embeddings.layernorm.weight is I16, must be F32, F16 or BF16',
      ]),
    );
    expect(fault.details.mismatched).toHaveLength(3);
    for (const name of ['query_tokens', 'extra.tokens', 'language_projection.weight'])
      expect(fault.message).toContain(name);
  });

  it('sizes embeddings by the tensor, but holds the head to the same vocabulary', async () => {
    const fault = await faultOf('llama-gqa-tiny', (header) => {
      header['lm_head.weight']!.shape = [500, 256];
    });
    expect(fault.details.mismatched).toEqual(['lm_head.weight is [500, 256], must be [1000, 128]']);
    const wide = await faultOf('llama-gqa-tiny', (header) => {
      header['model.embed_tokens.weight']!.shape = [500, 256];
    });
    expect(wide.details.mismatched).toContain('model.embed_tokens.weight is [500, 256], must be [any, 128]');
  });

  it('accepts leftovers that old conversions store: position ids and rotary frequencies', async () => {
    const leftovers = [
      'vision_model.embeddings.position_ids',
      'qformer.embeddings.position_ids',
      'language_model.model.rotary_emb.inv_freq',
      'language_model.model.layers.0.self_attn.rotary_emb.inv_freq',
      'language_model.model.layers.2.self_attn.rotary_emb.inv_freq',
    ];
    await withEditedCheckpoint(
      'instructblip-vicuna-tiny',
      (header) => {
        const end = Math.max(...Object.values(header).map((entry) => entry.data_offsets?.[1] ?? 0));
        for (const name of leftovers) header[name] = { dtype: 'I64', shape: [0], data_offsets: [end, end] };
      },
      async (dir) => {
        const checkpoint = openCheckpoint(dir);
        expect(checkpoint.tensors.has(leftovers[0]!)).toBe(true);
        const weights = new Weights(checkpoint, CPU);
        const model = createModel(checkpoint, weights);
        await weights.load();
        model.dispose();
      },
    );
  });

  it('refuses the same name twice, a bug of a model', () => {
    const weights = new Weights(openCheckpoint(fixturePath('llama-gqa-tiny')), CPU);
    weights.vector('model.norm.weight', [128]);
    expect(() => weights.matrix('model.norm.weight', [128])).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
  });

  it('ignores everything below a name that ends with a dot, and nothing else', () => {
    const weights = new Weights(openCheckpoint(fixturePath('llama-gqa-tiny')), CPU);
    weights.ignore('model.');
    expect(() => weights.check()).toThrow(
      expect.objectContaining({ details: { missing: [], surplus: ['lm_head.weight'], mismatched: [] } }),
    );
    weights.ignore('lm_head.weight');
    expect(() => weights.check()).not.toThrow();
  });
});

describe.each(testDevices)('loading to %s', (device) => {
  expectNoLeaks();
  const goldens = new Goldens('llama-gqa-tiny', 'model.safetensors');

  function partial(dtype: 'auto' | 'f32' | 'f16' | 'bf16') {
    const weights = new Weights(openCheckpoint(fixturePath('llama-gqa-tiny')), { device, dtype });
    const matrix = weights.matrix('lm_head.weight', [ANY, 128]);
    const vector = weights.vector('model.norm.weight', [128]);
    weights.ignore('model.');
    return { weights, matrix, vector };
  }

  it.each(['auto', 'f32', 'f16', 'bf16'] as const)(
    'with dtype %s converts matrices only where asked, vectors to f32',
    async (dtype) => {
      const { weights, matrix, vector } = partial(dtype);
      await weights.load();
      expect(matrix.tensor.dtype).toBe(dtype === 'auto' ? 'bf16' : dtype);
      expect(vector.tensor.dtype).toBe('f32');
      expectSameBits(vector.tensor.toFloat32(), goldens.floats('model.norm.weight'));
      const values = goldens.floats('lm_head.weight');
      // f16 has more digits than bf16 but a smaller range: only the smallest weights lose any
      if (dtype === 'f16') expect(Math.abs(matrix.tensor.toFloat32()[77]! - values[77]!)).toBeLessThan(2 ** -14);
      else expectSameBits(matrix.tensor.toFloat32(), values);
      weights.dispose();
    },
  );

  it('puts stacked tensors behind each other, and derives what is computed from them', async () => {
    const weights = new Weights(openCheckpoint(fixturePath('llama-gqa-tiny')), { device, dtype: 'auto' });
    const names = ['k_proj', 'v_proj'].map((name) => `model.layers.0.self_attn.${name}.weight`);
    const stack = weights.stackedMatrix(names, [32, 128]);
    const norms = weights.stackedVector(['model.layers.1.input_layernorm.weight', 'model.norm.weight'], [128]);
    const sum = weights.derived('sum', [64, 128], () => ops.add(stack.tensor.cast('f32'), stack.tensor.cast('f32')));
    weights.ignore('model.');
    weights.ignore('lm_head.weight');
    await weights.load();
    expect(stack.tensor.shape).toEqual([64, 128]);
    expect(stack.tensor.dtype).toBe('bf16');
    const values = Float32Array.of(...names.flatMap((name) => [...goldens.floats(name)]));
    expectSameBits(stack.tensor.toFloat32(), values);
    expect(norms.tensor.dtype).toBe('f32');
    expectSameBits(norms.tensor.toFloat32().slice(128), goldens.floats('model.norm.weight'));
    expectSameBits(
      sum.tensor.toFloat32(),
      values.map((value) => 2 * value),
    );
    weights.dispose();
    expect(() => sum.tensor).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
  });

  it('names a missing part of a stack and one of another shape', () => {
    const weights = new Weights(openCheckpoint(fixturePath('llama-gqa-tiny')), { device, dtype: 'auto' });
    weights.stackedMatrix(['model.norm.weight', 'model.none.weight'], [32, 128]);
    weights.ignore('model.layers.');
    weights.ignore('model.embed_tokens.');
    weights.ignore('lm_head.weight');
    expect(() => weights.check()).toThrow(
      expect.objectContaining({
        details: {
          missing: ['model.none.weight'],
          surplus: [],
          mismatched: ['model.norm.weight is [128], must be [32, 128]'],
        },
      }),
    );
  });

  it('reports progress up to the bytes of the declared tensors', async () => {
    const { weights } = partial('auto');
    const seen: number[] = [];
    let total = 0;
    await weights.load({ onProgress: (p) => (seen.push(p.loaded), (total = p.total)) });
    weights.dispose();
    expect(total).toBe(1000 * 128 * 2 + 128 * 2);
    expect(seen.at(-1)).toBe(total);
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
  });

  it('gives no tensor before loading nor after disposal', async () => {
    const { weights, matrix } = partial('auto');
    const unloaded = expect.objectContaining({ code: 'INTERNAL', message: expect.stringContaining('lm_head.weight') });
    expect(() => matrix.tensor).toThrow(unloaded);
    await weights.load();
    const { tensor } = matrix;
    weights.dispose();
    expect(() => matrix.tensor).toThrow(unloaded);
    expect(tensor.disposed).toBe(true);
  });

  it('is refused before it begins when the signal is already aborted', async () => {
    const { weights } = partial('auto');
    await expect(weights.load({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('releases everything when it is aborted on the way, or when a progress callback throws', async () => {
    const before = liveTensors();
    const controller = new AbortController();
    const aborted = partial('f32').weights;
    const loading = aborted.load({ signal: controller.signal });
    controller.abort(new Error('no longer needed'));
    await expect(loading).rejects.toMatchObject({ code: 'ABORTED', cause: { message: 'no longer needed' } });
    expect(liveTensors()).toBe(before);
    const { weights, vector } = partial('f32');
    const failing = weights.load({
      onProgress: () => {
        throw new Error('from the caller');
      },
    });
    await expect(failing).rejects.toThrow('from the caller');
    expect(() => vector.tensor).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
    expect(liveTensors()).toBe(before);
  });

  it('releases everything when the file has disappeared since the folder was opened', async () => {
    const before = liveTensors();
    await withEditedCheckpoint(
      'llama-gqa-tiny',
      () => {},
      async (dir) => {
        const checkpoint = openCheckpoint(dir);
        const weights = new Weights(checkpoint, { device, dtype: 'auto' });
        createModel(checkpoint, weights);
        rmSync(join(dir, 'model.safetensors'));
        await expect(weights.load()).rejects.toMatchObject({ code: 'IO' });
      },
    );
    expect(liveTensors()).toBe(before);
  });

  it('leaves the checkpoint usable after many loads and disposals', async () => {
    for (let i = 0; i < (isEmulated(device) ? 2 : 20); i++) {
      const { weights, vector } = partial('auto');
      await weights.load();
      expect(vector.tensor.shape).toEqual([128]);
      weights.dispose();
    }
  });
});

describe('a parameter', () => {
  it('names itself when it is read too early', () => {
    expect(() => new Parameter('layer.weight', [1]).tensor).toThrow('layer.weight');
  });
});
