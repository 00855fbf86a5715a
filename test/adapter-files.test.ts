// Adapter folders that are damaged, do not fit the model, or ask for what is not implemented: every fault is named, and what was
// made until then is freed.

import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { isQFormerError, type QFormerError } from '../lib/errors.js';
import { readAdapterConfig } from '../lib/io/adapter-config.js';
import { readAdapter } from '../lib/io/adapter.js';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import { AdapterSet } from '../lib/models/adapters.js';
import { createModel } from '../lib/models/registry.js';
import { Weights } from '../lib/models/weights.js';
import { liveTensors } from '../lib/tensor/index.js';
import { expectNoLeaks, fixturePath } from './support/fixtures.js';
import { propertyRuns } from './support/property-runs.js';
import { buildSafetensors } from './support/safetensors-builder.js';

let dir: string;
beforeEach(() => (dir = mkdtempSync(join(tmpdir(), 'qformer-adapter-'))));
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const CONFIG = { peft_type: 'LORA', r: 2, lora_alpha: 4 };
const LAYER = 'base_model.model.language_model.model.layers.0.self_attn.q_proj';

function write(config: object, shapes: Record<string, number[]> = {}, dtype = 'F32'): string {
  writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify(config));
  const bytes = (shape: number[]): number =>
    shape.reduce((product, extent) => product * extent, dtype === 'F32' ? 4 : 8);
  const tensors = Object.entries(shapes).map(([name, shape]) => [name, { dtype, shape, bytes: bytes(shape) }]);
  writeFileSync(join(dir, 'adapter_model.safetensors'), buildSafetensors(Object.fromEntries(tensors)));
  return dir;
}

function faultOf(fn: () => unknown): QFormerError {
  try {
    fn();
  } catch (error) {
    if (isQFormerError(error)) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('the configuration', () => {
  const scaling = (config: object, path: string): { rank: number; scaling: number } => {
    write({ ...CONFIG, ...config });
    return readAdapterConfig(join(dir, 'adapter_config.json')).scalingOf(path);
  };

  it('scales by alpha over the rank, or over its root', () => {
    expect(scaling({ r: 16, lora_alpha: 8 }, 'x')).toEqual({ rank: 16, scaling: 0.5 });
    expect(scaling({ r: 16, lora_alpha: 8, use_rslora: true }, 'x')).toEqual({ rank: 16, scaling: 2 });
  });

  it('takes the first pattern that matches the end of the path from a dot on', () => {
    const patterns = {
      rank_pattern: { '1.q_proj': 4, q_proj: 8, '[kv]_proj': 16 },
      alpha_pattern: { 'layers.0.q_proj': 32 },
    };
    expect(scaling(patterns, 'layers.1.q_proj')).toEqual({ rank: 4, scaling: 1 });
    expect(scaling(patterns, 'layers.0.q_proj')).toEqual({ rank: 8, scaling: 4 });
    expect(scaling(patterns, 'layers.0.v_proj')).toEqual({ rank: 16, scaling: 0.25 });
    // .11.q_proj would match 1.q_proj only inside a number
    expect(scaling({ rank_pattern: { '1.q_proj': 4 } }, 'layers.11.q_proj')).toEqual({ rank: 2, scaling: 2 });
  });

  it.each([
    ['another method', { peft_type: 'IA3' }, 'UNSUPPORTED', 'peft_type'],
    ['weights stored the other way round', { fan_in_fan_out: true }, 'UNSUPPORTED', 'fan_in_fan_out'],
    ['copied layers', { layer_replication: [[0, 2]] }, 'UNSUPPORTED', 'layer_replication'],
    [
      'an initialisation that changes the base',
      { init_lora_weights: 'pissa_niter_16' },
      'UNSUPPORTED',
      'init_lora_weights',
    ],
    ['trained tokens', { trainable_token_indices: [1] }, 'UNSUPPORTED', 'trainable_token_indices'],
    ['no rank', { r: 0 }, 'FORMAT', 'r'],
    ['an alpha that is no number', { lora_alpha: '8' }, 'FORMAT', 'lora_alpha'],
    ['a rank by pattern that is none', { rank_pattern: { q: 1.5 } }, 'FORMAT', "rank_pattern['q']"],
  ])('with %s is refused by name', (_, change, code, key) => {
    write({ ...CONFIG, ...change });
    expect(faultOf(() => readAdapter(dir))).toMatchObject({ code, details: { key } });
  });

  it.each([
    ['is no expression', '(q_proj'],
    ['would run for ever', '(a+)+b'],
  ])('with a pattern that %s is a FORMAT error', (_, pattern) => {
    const fault = faultOf(() => scaling({ rank_pattern: { [pattern]: 4 } }, `x.${'a'.repeat(60)}`));
    expect(fault).toMatchObject({ code: 'FORMAT', details: { patterns: [pattern] } });
  });

  it('of any content gives a finite scaling or is refused with a typed error', { timeout: 0 }, () => {
    const value = fc.oneof(fc.jsonValue(), fc.double(), fc.integer(), fc.constantFrom(true, false, 'LORA', 1, 8));
    const patterns = fc.dictionary(fc.oneof(fc.string(), fc.constantFrom('q_proj', '[qk]_proj', '(', '.*')), value);
    const config = fc.record({
      peft_type: fc.oneof({ weight: 9, arbitrary: fc.constant('LORA') }, value),
      r: fc.oneof({ weight: 9, arbitrary: fc.nat(64) }, value),
      lora_alpha: fc.oneof({ weight: 9, arbitrary: fc.double({ noNaN: true }) }, value),
      use_rslora: value,
      rank_pattern: fc.oneof(
        fc.constant({}),
        fc.dictionary(fc.constantFrom('q_proj', 'k.*'), fc.nat(64)),
        patterns,
        value,
      ),
      alpha_pattern: fc.oneof(
        fc.constant({}),
        fc.dictionary(fc.constantFrom('q_proj', 'k.*'), fc.double()),
        patterns,
        value,
      ),
      init_lora_weights: fc.oneof(fc.boolean(), value),
    });
    fc.assert(
      fc.property(config, (json) => {
        try {
          const { rank, scaling: factor } = scaling(json, 'layers.0.q_proj');
          expect(rank).toBeGreaterThanOrEqual(1);
          expect(Number.isFinite(Math.fround(factor))).toBe(true);
        } catch (error) {
          if (!isQFormerError(error)) throw error;
          expect(['FORMAT', 'UNSUPPORTED']).toContain(error.code);
        }
      }),
      propertyRuns(300),
    );
  });

  it('survives damage anywhere in the folder', { timeout: 0 }, () => {
    write(CONFIG, { [`${LAYER}.lora_A.weight`]: [2, 8], [`${LAYER}.lora_B.weight`]: [8, 2] });
    const names = ['adapter_config.json', 'adapter_model.safetensors'] as const;
    const whole = names.map((name) => readFileSync(join(dir, name)));
    const damage = fc.record({ file: fc.nat(1), at: fc.nat(400), byte: fc.nat(255), cut: fc.option(fc.nat(400)) });
    fc.assert(
      fc.property(fc.array(damage, { minLength: 1, maxLength: 4 }), (damages) => {
        const copies = whole.map((bytes) => Buffer.from(bytes));
        for (const { file, at, byte, cut } of damages) {
          const bytes = copies[file]!;
          if (bytes.length > 0) bytes[at % bytes.length] = byte;
          if (cut !== null) copies[file] = bytes.subarray(0, cut);
        }
        names.forEach((name, i) => writeFileSync(join(dir, name), copies[i]!));
        try {
          readAdapter(dir);
        } catch (error) {
          if (!isQFormerError(error)) throw error;
          expect(['FORMAT', 'UNSUPPORTED', 'IO']).toContain(error.code);
        }
      }),
      propertyRuns(300),
    );
  });
});

describe('the folder', () => {
  it('must exist and hold a configuration and tensors', () => {
    expect(faultOf(() => readAdapter(join(dir, 'none'))).code).toBe('IO');
    expect(faultOf(() => readAdapter('')).code).toBe('INVALID_ARGUMENT');
    expect(faultOf(() => readAdapter(dir)).message).toContain('adapter_config.json');
    writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify(CONFIG));
    expect(faultOf(() => readAdapter(dir)).message).toContain('adapter_model');
  });
});

describe('fitting a model', () => {
  let adapters: AdapterSet;
  let release: () => void;
  beforeAll(async () => {
    const checkpoint = openCheckpoint(fixturePath('instructblip-vicuna-tiny'));
    const weights = new Weights(checkpoint, { device: 'cpu', dtype: 'auto' });
    const model = createModel(checkpoint, weights);
    await weights.load();
    adapters = new AdapterSet(weights);
    release = () => (adapters.dispose(), model.dispose());
  });
  afterAll(() => {
    release();
    expect(liveTensors()).toBe(0);
  });
  expectNoLeaks();

  it('names every tensor without a place, of a wrong shape or rank, or alone, in one error', () => {
    const other = LAYER.replace('q_proj', 'k_proj');
    write(CONFIG, {
      [`${LAYER}.lora_A.weight`]: [2, 159],
      [`${LAYER}.lora_B.weight`]: [160, 2],
      [`${other}.lora_A.weight`]: [2, 160],
      [`${LAYER.replace('q_proj', 'v_proj')}.lora_A.weight`]: [3, 160],
      [`${LAYER.replace('q_proj', 'v_proj')}.lora_B.weight`]: [160, 3],
      'base_model.model.qformer.nowhere.lora_A.weight': [2, 64],
      'base_model.model.qformer.nowhere.lora_B.weight': [64, 2],
      'base_model.model.language_projection.weight': [160, 63],
      'base_model.model.extra.bias': [3],
      'loose.lora_A.weight': [2, 2],
    });
    const { code, details } = faultOf(() => adapters.load('x', dir));
    expect(code).toBe('FORMAT');
    expect(details.unmatched).toEqual([
      'loose.lora_A.weight',
      'base_model.model.qformer.nowhere.lora_A.weight',
      'base_model.model.qformer.nowhere.lora_B.weight',
      'base_model.model.extra.bias',
    ]);
    expect(details.mismatched).toEqual([
      `${LAYER}.lora_A.weight is [2, 159], must be [2, 160]`,
      'language_model.model.layers.0.self_attn.k_proj has A but no B',
      'language_model.model.layers.0.self_attn.v_proj has rank 3 and 3, by the configuration 2',
      'base_model.model.language_projection.weight is [160, 63], must be [160, 64]',
    ]);
    expect(adapters.list()).toEqual([]);
  });

  it('refuses tensors that are not floats, and an adapter without tensors', () => {
    write(CONFIG, { [`${LAYER}.lora_A.weight`]: [2, 160], [`${LAYER}.lora_B.weight`]: [160, 2] }, 'I64');
    expect(faultOf(() => adapters.load('x', dir))).toMatchObject({ code: 'FORMAT' });
    write(CONFIG);
    expect(faultOf(() => adapters.load('x', dir))).toMatchObject({ code: 'FORMAT' });
  });

  it('refuses a bias where the layer has none', () => {
    write(CONFIG, {
      [`${LAYER}.lora_A.weight`]: [2, 160],
      [`${LAYER}.lora_B.weight`]: [160, 2],
      [`${LAYER}.lora_B.bias`]: [160],
    });
    expect(faultOf(() => adapters.load('x', dir))).toMatchObject({ code: 'UNSUPPORTED' });
  });

  it('reads PyTorch’s own format', () => {
    const folder = fixturePath('generated/adapters');
    const [bin, safetensors] = [adapters.load('bin', `${folder}/bin`), adapters.load('same', `${folder}/bias`)];
    expect({ ...bin, name: '', dir: '' }).toEqual({ ...safetensors, name: '', dir: '' });
    adapters.unload('bin');
    adapters.unload('same');
  });

  it('frees what was made when the file ends too early', () => {
    mkdirSync(join(dir, 'cut'));
    cpSync(fixturePath('lora/adapter_a_standard'), join(dir, 'cut'), { recursive: true });
    const file = join(dir, 'cut', 'adapter_model.safetensors');
    writeFileSync(file, readFileSync(file).subarray(0, 40_000));
    expect(faultOf(() => adapters.load('x', join(dir, 'cut'))).code).toBe('FORMAT');
  });
});
