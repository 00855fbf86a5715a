// The comparison with peers: what becomes of the samples (ratios, verdicts, table, picture), the files that peers load, and the
// options. The peers themselves are no part of the tests.

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readOptions } from '../bench/options.js';
import { bindingLimit, inUnit, judge, middle, ratios, type ComparisonRow } from '../bench/peers/comparison.js';
import { comparisons } from '../bench/peers/comparisons.js';
import { bounded } from '../bench/peers/fact.js';
import { ggufBytes, writeGguf } from '../bench/peers/gguf.js';
import { VIT_G } from '../bench/peers/model-files.js';
import { writeVisionOnnx } from '../bench/peers/onnx.js';
import { picture } from '../bench/peers/picture.js';
import { mergeReport, peerMarkdown, type PeerReport } from '../bench/peers/report.js';
import { SMALL } from '../bench/model/synthetic.js';
import { summarise } from '../bench/measure.js';
import type { Peak, Peaks } from '../bench/row.js';

const peak = (value: number): Peak => ({ median: value, min: value, max: value, samples: 3, loop: 'test' });
const PEAKS: Peaks = {
  isa: 'avx512',
  threads: 2,
  f32: peak(200),
  bf16: peak(400),
  dram: peak(40),
  l3: peak(160),
  l2: peak(200),
};
const MACHINE: PeerReport['machine'] = {
  cpu: 'Test <CPU> & co',
  cores: 2,
  memory: 8 * 2 ** 30,
  l3: 2 ** 25,
  kernel: 'linux 6',
  node: 'v20',
  compiler: 'c++',
  commit: 'abc',
  date: '2026-01-02T03:04:05.000Z',
  load: 0,
};

/** A row in which ours takes `ours` ms and llama.cpp `peer` ms in every turn. */
function rowOf(name: string, ours: number[], peer: number[], atLeast: number): ComparisonRow {
  const row: ComparisonRow = {
    group: 'LLaMA 1.1B',
    name,
    threads: 2,
    unit: 'tokens/s',
    amount: 32,
    ours: summarise(ours),
    rivals: [{ peer: 'node-llama-cpp', weights: 'Q4_0', timing: summarise(peer), ratio: ratios(peer, ours) }],
    judgements: [],
  };
  row.judgements = judge([{ against: { peer: 'node-llama-cpp', weights: 'Q4_0' }, atLeast }], row);
  return row;
}

const reportOf = (rows: ComparisonRow[]): PeerReport => {
  const peers = [{ name: 'torch' as const, missing: 'there is no python3' }];
  return { machine: MACHINE, smoke: false, peers, peaks: [PEAKS], rows, facts: [] };
};

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'qformer-peers-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe('ratios', () => {
  it('are of neighbouring turns, so that a slow moment that meets both does not change them', () => {
    const { median, min, max } = ratios([20, 200, 22], [10, 100, 11]);
    expect([median, min, max]).toEqual([2, 2, 2]);
  });

  it('use the turns that both sides have, where one of them failed later', () => {
    expect(ratios([30, 30], [10, 10, 1]).median).toBe(3);
  });

  it('take the middle of the runs of a turn', () => {
    expect(middle([9, 1, 2])).toBe(2);
  });

  it('show times as rates, or as they are', () => {
    expect(inUnit({ unit: 'tokens/s', amount: 32 }, 500)).toBe(64);
    expect(inUnit({ unit: 'ms', amount: 1 }, 500)).toBe(500);
  });
});

describe('verdicts', () => {
  it('say met at the bar and LOST below it', () => {
    expect(rowOf('a', [100], [120], 1.2).judgements[0]!.verdict).toBe('met');
    expect(rowOf('a', [100], [119], 1.2).judgements[0]!.verdict).toBe('LOST');
  });

  it('of the best peer go by the one with the smallest ratio, and name it', () => {
    const row = rowOf('a', [100], [300], 1);
    row.rivals.push({ peer: 'torch', weights: 'bf16', timing: summarise([110]), ratio: ratios([110], [100]) });
    const [judgement] = judge([{ against: 'best', atLeast: 1.2 }], row);
    expect(judgement).toEqual({ bar: '≥ 1.2 × the best peer (torch bf16)', measured: '1.10 ×', verdict: 'LOST' });
  });

  it('say not run where the peer is missing', () => {
    const row = rowOf('a', [100], [300], 1);
    row.rivals = [{ peer: 'node-llama-cpp', weights: 'Q4_0', error: 'not installed' }];
    const bar = { against: { peer: 'node-llama-cpp', weights: 'Q4_0' }, atLeast: 1 } as const;
    expect(judge([bar], row)[0]!.verdict).toBe('not run');
  });

  it('of single figures hold on both sides of a bound', () => {
    const fact = { group: 'start', name: 'import', unit: 'ms' };
    expect(bounded({ ...fact, value: 20 }, '≤', 20).verdict).toBe('met');
    expect(bounded({ ...fact, value: 20.1 }, '≤', 20).verdict).toBe('LOST');
    expect(bounded({ ...fact, value: 0.8 }, '≥', 0.9).verdict).toBe('LOST');
    expect(bounded(fact, '≤', 20).verdict).toBe('not run');
  });
});

describe('the binding limit', () => {
  it('is DRAM for a matrix-vector product and the arithmetic for a large product', () => {
    const work = (m: number) => ({ flops: 2 * m * 1e6, bytes: 2e6, compute: 'bf16', memory: 'dram' }) as const;
    expect(bindingLimit(work(1), PEAKS)).toBe('dram');
    expect(bindingLimit(work(257), PEAKS)).toBe('bf16');
    expect(bindingLimit(work(257), { ...PEAKS, bf16: undefined })).toBe('f32');
    expect(bindingLimit({}, PEAKS)).toBeUndefined();
  });
});

describe('the report', () => {
  it('shows losses, missing peers and figures in the row’s unit', () => {
    const text = peerMarkdown(reportOf([rowOf('decode', [1000], [500], 1.2)]), 'x.svg');
    expect(text).toContain('torch: **missing**, there is no python3');
    expect(text).toContain('**LOST**');
    expect(text).toContain('32.0 (32.0–32.0) tokens/s');
    expect(text).toContain('Bars: 0 met, 1 lost, 0 not run.');
  });

  it('says what was found about a loss, of the rows that are lost alone', () => {
    const rows = [rowOf('decode, int4', [1000], [500], 1.2), rowOf('decode, int8', [500], [1000], 1.2)];
    const [, causes] = peerMarkdown(reportOf(rows), 'x.svg').split('## Causes found of what is lost');
    expect(causes).toMatch(/\*\*LLaMA 1\.1B: decode, int4\*\*: \S/);
    expect(causes).not.toContain('decode, int8');
    expect(peerMarkdown(reportOf(rows.slice(1)), 'x.svg')).not.toContain('Causes');
  });

  it('keeps the other rows of an earlier report and replaces those measured again', () => {
    const file = join(dir, 'earlier.json');
    writeFileSync(file, JSON.stringify(reportOf([rowOf('a', [1], [1], 1), rowOf('b', [1], [1], 1)])));
    const fresh = reportOf([rowOf('b', [7], [7], 1), rowOf('c', [1], [1], 1)]);
    mergeReport(fresh, file);
    expect(fresh.rows.map(({ name, ours }) => [name, ours!.median])).toEqual([
      ['a', 1],
      ['b', 7],
      ['c', 1],
    ]);
    expect(fresh.peaks).toHaveLength(1);
  });
});

describe('the picture', () => {
  it('draws a bar for each peer, marks losses, and escapes what is no markup', () => {
    const svg = picture([rowOf('fast', [100], [300], 1.2), rowOf('slow', [300], [100], 1.2)], MACHINE);
    expect(svg).toContain('Test &lt;CPU&gt; &amp; co');
    expect(svg).toContain('>3.00 ×<');
    expect(svg).toContain('>0.333 × LOST<');
    expect(svg.match(/LOST/g)).toHaveLength(1);
  });

  it('has finite coordinates for ratios beyond its scale', () => {
    const svg = picture([rowOf('a', [1e-3], [1e6], 1), rowOf('b', [1e6], [1e-3], 1)], MACHINE);
    expect(svg).not.toMatch(/NaN|Infinity/);
    const xs = [...svg.matchAll(/ x="([\d.]+)"/g)].map(([, x]) => Number(x));
    expect(Math.max(...xs)).toBeLessThanOrEqual(1000);
  });
});

describe('the rows', () => {
  it('have names of their own, and every bar is against a rival that takes part or a limit', () => {
    const all = comparisons(true);
    expect(new Set(all.map(({ group, name }) => `${group} ${name}`)).size).toBe(all.length);
    for (const { bars, rivals } of all) {
      for (const { against } of bars) {
        if (typeof against === 'string') continue;
        expect(rivals).toContainEqual(expect.objectContaining(against));
      }
    }
  });
});

describe('model files of peers', () => {
  const tiny = { ...SMALL.text_config, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, vocab_size: 300 };

  it('are GGUF files whose tensors end where the file ends', () => {
    for (const weights of ['BF16', 'Q8_0', 'Q4_0'] as const) {
      const file = join(dir, `${weights}.gguf`);
      writeGguf(file, { ...tiny, num_attention_heads: 2, num_key_value_heads: 1 }, weights);
      const bytes = readFileSync(file);
      expect(bytes.toString('latin1', 0, 4)).toBe('GGUF');
      expect(bytes.readUInt32LE(4)).toBe(3);
      // 3 tensors and 9 in each layer
      expect(Number(bytes.readBigUInt64LE(8))).toBe(21);
      const weightBytes = ggufBytes({ ...tiny, num_attention_heads: 2, num_key_value_heads: 1 }, weights);
      expect(bytes.length).toBeGreaterThan(weightBytes);
      expect(bytes.length % 32).toBe(0);
    }
  });

  it('are ONNX files beside the weights that they name', () => {
    const sizes = { ...VIT_G.vision_config, hidden_size: 16, intermediate_size: 32, num_attention_heads: 2 };
    const path = join(dir, 'model.onnx');
    writeVisionOnnx(path, { ...sizes, num_hidden_layers: 1, image_size: 28 });
    const graph = readFileSync(path).toString('latin1');
    for (const op of ['Conv', 'LayerNormalization', 'MatMul', 'Softmax', 'Erf', 'model.onnx.data']) {
      expect(graph).toContain(op);
    }
    const [d, mlp, tokens] = [16, 32, 5];
    const layer = 4 * d * d + 4 * d + 2 * d * mlp + mlp + d + 4 * d;
    const embedding = d * 3 * 14 * 14 + d + d + tokens * d;
    expect(statSync(`${path}.data`).size).toBe(4 * (embedding + layer + 2 * d));
  });
});

describe('the options', () => {
  it('of a comparison are refused without it', () => {
    expect(readOptions(['--peers', '--into', 'x.json'])).toMatchObject({ peers: true, into: 'x.json' });
    expect(() => readOptions(['--into', 'x.json'])).toThrow('--into goes with --peers');
  });
});
