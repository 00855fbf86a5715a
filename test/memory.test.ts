// What a checkpoint takes in memory before it is loaded, what is available within control groups, and the refusal of what cannot fit.

import { cpSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadEngine } from '../lib/engine/execution/load.js';
import { estimateMemory, inspect, loadModel } from '../lib/index.js';
import { availableMemory } from '../lib/io/available-memory.js';
import { kvBudget } from '../lib/io/memory-estimate.js';
import { liveTensors } from '../lib/tensor/index.js';
import { finishAll, idsGroup, withEngine } from './support/engine-models.js';
import { expectError, expectRejection } from './support/expect-error.js';
import { fixturePath } from './support/fixtures.js';
import { plainRequests } from './support/reference-requests.js';
import { rawSafetensors } from './support/safetensors-builder.js';

const root = mkdtempSync(join(tmpdir(), 'qformer-memory-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const vicuna = fixturePath('instructblip-vicuna-tiny');
const GB = 1e9;

describe('the estimate', () => {
  it('has the keys and values that a load makes', async () => {
    const options = { dir: vicuna, device: 'cpu', kvCacheTokens: 1000 } as const;
    const { kv, kvTokens, kvPerToken } = estimateMemory(vicuna, { kvCacheTokens: 1000 });
    const { info, dispose } = await loadEngine(options);
    dispose();
    expect(liveTensors()).toBe(0);
    expect({ kv, kvTokens }).toEqual({ kv: info.kvCacheBytes, kvTokens: info.kvCacheTokens });
    expect(kvPerToken * kvTokens).toBe(kv);
  });

  it('has every weight once, in the file where it keeps its type and copied where not', () => {
    const { parameters, bytes } = inspect(vicuna);
    const stored = estimateMemory(vicuna);
    // f16 matrices stay in the file; vectors and stacked matrices are copied, vectors as f32
    expect(stored.mapped).toBeGreaterThan(0.8 * bytes);
    expect(stored.mapped + stored.copied).toBeGreaterThan(bytes);
    expect(stored.mapped + stored.copied).toBeLessThan(1.2 * bytes);
    const widened = estimateMemory(vicuna, { dtype: 'f32' });
    expect([widened.mapped, widened.copied]).toEqual([0, 4 * parameters]);
    expect(estimateMemory(vicuna, { dtype: 'f16' }).mapped).toBe(stored.mapped);
  });

  it('has the bytes of quantised weights as a load counts them', async () => {
    for (const quantize of ['int8', 'int4'] as const) {
      const { mapped, copied } = estimateMemory(vicuna, { quantize });
      // what stays in the file: the Q-Former, the projection and the tables, a third of this model
      expect(mapped).toBeLessThan(estimateMemory(vicuna).mapped / 2);
      const { info, dispose } = await loadEngine({ dir: vicuna, device: 'cpu', quantize, kvCacheTokens: 100 });
      dispose();
      expect((mapped + copied) / info.weightBytes).toBeCloseTo(1, 1);
    }
  });

  it('asks for weights, one full context and a base, and names what fills up beyond that', () => {
    const { mapped, copied, base, caches, context, kv, kvPerToken, required, peak } = estimateMemory(vicuna);
    expect(required).toBe(mapped + copied + base + context * kvPerToken);
    expect(peak).toBe(mapped + copied + base + kv + caches);
    const asked = estimateMemory(vicuna, { kvCacheTokens: 10 * context });
    expect(asked.required - required).toBe(9 * context * kvPerToken);
  });

  it('has no keys and values for a model without a language model, and both folders of one in two', () => {
    expect(estimateMemory(fixturePath('blip2-itm-tiny'))).toMatchObject({ kv: 0, kvPerToken: 0, context: 0 });
    const [visual, languageModel] = ['visual', 'llm'].map((part) => fixturePath('ziya-visual-tiny', part)) as [
      string,
      string,
    ];
    const whole = estimateMemory(visual, { languageModel });
    const alone = estimateMemory(languageModel);
    expect(whole.kvPerToken).toBe(alone.kvPerToken);
    expect(whole.mapped).toBeGreaterThan(alone.mapped);
  });

  it.each<[string, string[], { dtype?: 'f32'; quantize?: 'int8' }]>([
    ['low-rank parts', ['lora/adapter_a_standard', 'lora/adapter_b_rslora', 'lora/adapter_d_vision'], {}],
    ['changed weights', ['dora', 'tables', 'bias'].map((kind) => `generated/adapters/${kind}`), {}],
    ['whole modules', ['generated/adapters/saved', 'lora/adapter_c_patterns'], { dtype: 'f32' }],
    ['quantised weights', ['generated/adapters/dora', 'lora/adapter_c_patterns'], { quantize: 'int8' }],
  ])('has what adapters take: %s', async (_, folders, options) => {
    const dirs = folders.map((folder) => fixturePath(folder));
    const bare = estimateMemory(vicuna, options);
    const { adapters, required, peak } = estimateMemory(vicuna, { ...options, adapters: dirs });
    expect(bare.adapters).toBe(0);
    expect([required - bare.required, peak - bare.peak]).toEqual([adapters, adapters]);
    await withEngine('instructblip-vicuna-tiny', options, (loaded) => {
      dirs.forEach((dir, i) => loaded.adapters.load(String(i), dir));
      // Small values derived of changed weights are left out; scales are estimated by groups of 64 columns, these layers have smaller ones.
      expect(adapters / loaded.adapters.bytes).toBeCloseTo(1, options.quantize ? 1 : 2);
    });
  });

  it('has what cross-attention of T5 reads: a token of the prompt takes as much as one of the answer', async () => {
    const name = 'instructblip-flant5-tiny';
    const { kvPerToken } = estimateMemory(fixturePath(name));
    const { request, ids } = (await plainRequests(name))[0]!;
    await withEngine(name, {}, ({ engine, model, kvBytes }) => {
      engine.add(idsGroup(1, model, request));
      let blocks = 0;
      finishAll(engine, () => (blocks = Math.max(blocks, engine.blocks.inUse)));
      // the start token and all of the answer but its last token
      const tokens = [request.ids.length, ids.length].map((count) => 16 * Math.ceil(count / 16));
      expect(blocks * 16).toBe(tokens[0]! + tokens[1]!);
      expect(16 * engine.blocks.numBlocks * kvPerToken).toBe(kvBytes);
    });
  });

  it('refuses options that it does not know', () => {
    expectError(() => estimateMemory(vicuna, { threads: 2 } as object), 'INVALID_ARGUMENT', "unknown option 'threads'");
    expectError(() => estimateMemory(vicuna, { kvCacheTokens: 0 }), 'INVALID_ARGUMENT', 'kvCacheTokens');
    expectError(() => estimateMemory(vicuna, { adapters: [root] }), 'IO', 'not an adapter folder');
    expectError(() => estimateMemory(vicuna, { adapters: 'x' as never }), 'INVALID_ARGUMENT', "'adapters'");
    expectError(() => estimateMemory(join(root, 'absent')), 'IO', 'no such folder');
  });

  it('leaves the weights their room when it sizes the pool', () => {
    expect([kvBudget(24, 4), kvBudget(24, 20), kvBudget(24, 30)]).toEqual([6, 4, 0]);
  });
});

describe('a checkpoint of 60 GB', () => {
  const dir = join(root, 'large');
  cpSync(fixturePath('llama-gqa-tiny'), dir, { recursive: true });
  const file = join(dir, 'model.safetensors');
  const tensor = { dtype: 'BF16', shape: [30_000_000, 1000], data_offsets: [0, 60 * GB] };
  rmSync(file);
  writeFileSync(file, rawSafetensors(JSON.stringify({ 'model.embed_tokens.weight': tensor }), 0));
  // A hole: it takes no room on the disk.
  truncateSync(file, 8 + JSON.stringify({ 'model.embed_tokens.weight': tensor }).length + 60 * GB);

  it('is refused before it is loaded, with what it needs and what there is', async () => {
    const error = await expectRejection(
      loadModel(dir, { device: 'cpu' }),
      'OUT_OF_MEMORY',
      /needs 60\.\d\d GB of memory/,
    );
    const { required, available } = error.details as { required: number; available: number };
    expect(required).toBeGreaterThan(60 * GB);
    expect(available).toBeGreaterThan(0);
    expect(available).toBeLessThan(required);
    expect(error.message).toContain('--no-memory-check');
  });

  it('is tried all the same where the check is turned off', async () => {
    const options = { device: 'cpu', memoryCheck: false } as const;
    await expectRejection(loadModel(dir, options), 'FORMAT', 'the tensors do not fit the model');
  });
});

describe('available memory', () => {
  let count = 0;
  function system(files: Record<string, string>): number {
    const at = join(root, `system-${count++}`);
    for (const [name, text] of Object.entries({
      'proc/meminfo': 'MemTotal: 9 kB\nMemAvailable:   1000 kB\n',
      ...files,
    })) {
      mkdirSync(dirname(join(at, name)), { recursive: true });
      writeFileSync(join(at, name), text);
    }
    return availableMemory(at);
  }
  const group = (at: string, max: string, current: number, stat = '') => ({
    [`sys/fs/cgroup${at}/memory.max`]: `${max}\n`,
    [`sys/fs/cgroup${at}/memory.current`]: `${current}\n`,
    [`sys/fs/cgroup${at}/memory.stat`]: stat,
  });
  const own = { 'proc/self/cgroup': '0::/a/b\n' };

  it('is what the system says where there is no limit', () => {
    expect(system({})).toBe(1_024_000);
    expect(system({ ...own, ...group('/a/b', 'max', 5) })).toBe(1_024_000);
  });

  it('is what the group’s limit leaves, file pages that can be dropped not counted as used', () => {
    const stat = 'anon 100\nactive_file 20000\ninactive_file 10000\n';
    expect(system({ ...own, ...group('/a/b', '500000', 100_000) })).toBe(400_000);
    expect(system({ ...own, ...group('/a/b', '500000', 100_000, stat) })).toBe(430_000);
  });

  it('is never less than nothing, and never more than an outer group leaves', () => {
    expect(system({ ...own, ...group('/a/b', '500000', 600_000) })).toBe(0);
    expect(system({ ...own, ...group('/a/b', '500000', 0), ...group('/a', '300000', 0) })).toBe(300_000);
    expect(system({ ...own, ...group('', '200000', 0) })).toBe(200_000);
  });

  it('knows the control groups of version 1', () => {
    const memory = {
      'proc/self/cgroup': '4:cpu,memory:/x\n0::/\n',
      'sys/fs/cgroup/memory/x/memory.limit_in_bytes': '70000\n',
      'sys/fs/cgroup/memory/x/memory.usage_in_bytes': '30000\n',
      'sys/fs/cgroup/memory/x/memory.stat': 'total_inactive_file 10000\ntotal_active_file 5000\n',
    };
    expect(system(memory)).toBe(55_000);
  });
});
