// The op table against float64 references (test/fixtures/kernels). Inputs are f16 values; the ops compute in f32.
// Tolerances are those the fixtures state for f32 arithmetic.

import { describe, expect, it } from 'vitest';
import { Tensor, ops, scope, type Dtype } from '../lib/tensor/index.js';
import { expectDevices, testDevices } from './support/devices.js';
import { Goldens, expectClose, expectNoLeaks, readJson } from './support/fixtures.js';

interface Cases<T> {
  cases: (T & { prefix: string })[];
}

function load<T>(family: string): { goldens: Goldens; cases: (T & { prefix: string })[] } {
  return {
    goldens: new Goldens('kernels', `${family}.safetensors`),
    cases: readJson<Cases<T>>('kernels', `${family}.json`).cases,
  };
}

expectDevices();

describe.each(testDevices)('on %s', (device) => {
  expectNoLeaks();

  const upload = (goldens: Goldens, name: string, dtype: Dtype = 'f32'): Tensor => {
    const { shape, data } = goldens.get(name);
    const f32 = Tensor.fromArray(Float32Array.from(data), shape, { device });
    return dtype === 'f32' ? f32 : f32.cast(dtype);
  };
  const ints = (values: ArrayLike<number>, shape = [values.length]): Tensor =>
    Tensor.fromArray(Int32Array.from(values), shape, { device });

  describe('gemm', () => {
    interface Gemm {
      M: number;
      N: number;
      K: number;
      activation?: string;
      bias?: boolean;
      residual?: boolean;
    }
    const { goldens, cases } = load<Gemm>('gemm');
    const names: Record<string, ops.Activation> = {
      gelu_erf: 'gelu',
      silu: 'silu',
      relu: 'relu',
      gelu_tanh: 'gelu_tanh',
      none: 'none',
    };
    const plain = cases.filter((c) => c.activation !== undefined);
    const runs = plain.flatMap((c) => (['f32', 'f16'] as const).map((dtype) => ({ ...c, dtype })));
    it.each(runs)('$prefix $M×$N×$K, $activation, w $dtype', (c) =>
      scope(() => {
        const activation = names[c.activation!];
        expect(activation, c.activation).toBeDefined();
        const y = ops.linear(upload(goldens, `${c.prefix}x`), upload(goldens, `${c.prefix}w`, c.dtype), {
          ...(c.bias && { bias: upload(goldens, `${c.prefix}bias`) }),
          ...(c.residual && { residual: upload(goldens, `${c.prefix}residual`) }),
          ...(activation && { activation }),
        });
        expectClose(y.toFloat32(), goldens.get(`${c.prefix}y`).data, { atol: 2e-5, rtol: 1e-5 });
      }),
    );
    it.each(cases.filter((c) => c.prefix.includes('glu')))('$prefix gated, $M rows of $K', (c) =>
      scope(() => {
        const [gate, up] = [upload(goldens, `${c.prefix}w_gate`), upload(goldens, `${c.prefix}w_up`)];
        const activation = c.prefix.startsWith('swiglu') ? 'silu' : 'gelu_tanh';
        const y = ops.gatedLinear(upload(goldens, `${c.prefix}x`), gate, up, { activation });
        expectClose(y.toFloat32(), goldens.get(`${c.prefix}y`).data, { atol: 2e-5, rtol: 1e-5 });
      }),
    );
    it.each(cases.filter((c) => c.prefix.startsWith('patch')))('$prefix patch embedding', (c) =>
      scope(() => {
        const [batch, patches, dim] = goldens.get(`${c.prefix}y`).shape as [number, number, number];
        const classEmbedding = Tensor.fromArray(new Float32Array(dim).fill(7), [dim], { device });
        const positions = Tensor.fromArray(
          Float32Array.from({ length: (1 + patches) * dim }, (_, i) => i % 5),
          [1 + patches, dim],
          { device },
        );
        const bias = upload(goldens, `${c.prefix}bias`);
        const y = ops.patchEmbedding(upload(goldens, `${c.prefix}x`), upload(goldens, `${c.prefix}w`), {
          bias,
          classEmbedding,
          positions,
        });
        const rows = ops
          .sub(y.reshape([batch, (1 + patches) * dim]), positions.reshape([(1 + patches) * dim]))
          .reshape([batch, 1 + patches, dim]);
        expectClose(rows.slice(1, 0, 1).toFloat32(), new Float32Array(batch * dim).fill(7), { atol: 1e-6 });
        expectClose(rows.slice(1, 1, 1 + patches).toFloat32(), goldens.get(`${c.prefix}y`).data, {
          atol: 2e-5,
          rtol: 1e-5,
        });
      }),
    );
  });

  describe('norm', () => {
    const { goldens, cases } = load<{ op: string; rows: number; cols: number; eps: number }>('norm');
    it.each(cases)('$prefix $rows×$cols, eps $eps', (c) =>
      scope(() => {
        const [x, weight] = [upload(goldens, `${c.prefix}x`), upload(goldens, `${c.prefix}weight`)];
        const y =
          c.op === 'layernorm'
            ? ops.layerNorm(x, weight, upload(goldens, `${c.prefix}bias`), c.eps)
            : ops.rmsNorm(x, weight, c.eps);
        // rtol 1e-4: the fixture's bound for rows of tiny values
        expectClose(y.toFloat32(), goldens.get(`${c.prefix}y`).data, { atol: 2e-5, rtol: 1e-4 });
      }),
    );
  });

  describe('rope', () => {
    const { goldens, cases } = load<{ head_dim: number; theta: number }>('rope');
    it.each(cases)('$prefix head_dim $head_dim, theta $theta', (c) =>
      scope(() => {
        const invFreq = Array.from({ length: c.head_dim / 2 }, (_, j) => c.theta ** ((-2 * j) / c.head_dim));
        const frequencies = Tensor.fromArray(invFreq, [c.head_dim / 2], { device });
        for (const name of ['q', 'k']) {
          const y = ops.rope(
            upload(goldens, `${c.prefix}${name}`),
            ints(goldens.ids(`${c.prefix}positions`)),
            frequencies,
          );
          // angles are f32: their error grows with the position
          expectClose(y.toFloat32(), goldens.get(`${c.prefix}${name}_out`).data, { atol: 1e-3 });
        }
      }),
    );
  });

  describe('softmax', () => {
    const { goldens, cases } = load<{ rows: number; cols: number }>('softmax');
    it.each(cases)('$prefix $rows×$cols with masked entries', (c) =>
      scope(() => {
        const { shape, data } = goldens.get(`${c.prefix}x`);
        const masked = goldens.get(`${c.prefix}masked`).data;
        const values = Float32Array.from(data, (value, i) => (masked[i] ? -Infinity : value));
        const x = Tensor.fromArray(values, shape, { device });
        expectClose(ops.softmax(x).toFloat32(), goldens.get(`${c.prefix}softmax`).data, { atol: 1e-6 });
        const log = ops.logSoftmax(x).toFloat32();
        const expected = goldens.get(`${c.prefix}log_softmax`).data;
        const finite = [...expected.keys()].filter((i) => Number.isFinite(expected[i]));
        expectClose(
          finite.map((i) => log[i]!),
          finite.map((i) => expected[i]!),
          { atol: 1e-5, rtol: 1e-5 },
        );
        expect([...log.keys()].filter((i) => log[i] === -Infinity).length).toBe(log.length - finite.length);
      }),
    );
  });

  describe('attention', () => {
    const { goldens, cases } = load<{ scale: number; op: string; lengths?: number[] }>('attention');
    it.each(cases)('$prefix $op', (c) =>
      scope(() => {
        const [batch, heads, lq, dim] = goldens.get(`${c.prefix}q`).shape as [number, number, number, number];
        const [, kvHeads, lk] = goldens.get(`${c.prefix}k`).shape as [number, number, number, number];
        const packed = (name: string, h: number, l: number): Tensor =>
          upload(goldens, `${c.prefix}${name}`)
            .transpose(1, 2)
            .contiguous()
            .reshape([batch * l, h, dim]);
        const [q, k, v] = [packed('q', heads, lq), packed('k', kvHeads, lk), packed('v', kvHeads, lk)];
        const expected = goldens.get(`${c.prefix}y`).data;
        const rows = rowsOf(c.prefix, c.lengths, batch, lq, lk);
        const pick = (x: Tensor, index: number[], h: number): Tensor =>
          ops.gatherRows(x.reshape([x.shape[0]!, h * dim]), ints(index)).reshape([index.length, h, dim]);
        const attend = (rowsQ: number[][], bias?: ops.DistanceBias): Float32Array =>
          ops
            .attention(pick(q, rowsQ.flat(), heads), pick(k, rows.k.flat(), kvHeads), pick(v, rows.k.flat(), kvHeads), {
              cuSeqlensQ: ints(offsets(rowsQ)),
              cuSeqlensK: ints(offsets(rows.k)),
              scale: c.scale,
              mask: c.op.includes('causal') ? 'causal' : 'full',
              ...(bias && { bias }),
            })
            .toFloat32();
        // The fixture's bias differs from row to row without a rule: each row gets a table of its own.
        const biased = (row: number): Float32Array => {
          const table = ops.gatherRows(
            upload(goldens, 't5_bias.bias').reshape([heads * lq, lk]),
            ints(Array.from({ length: heads }, (_, h) => h * lq + row)),
          );
          return attend([[row]], { table, origin: lk - 1 });
        };
        const o = c.prefix === 't5_bias.' ? rows.q.flat().flatMap((row) => [...biased(row)]) : attend(rows.q);
        const wanted = rows.q.flat().flatMap((row) => {
          const [b, i] = [Math.floor(row / lq), row % lq];
          return Array.from({ length: heads }, (_, h) => {
            const start = ((b * heads + h) * lq + i) * dim;
            return [...expected.slice(start, start + dim)];
          }).flat();
        });
        expectClose(o, wanted, { atol: 2e-5 });
      }),
    );
  });

  describe('paged attention', () => {
    const { goldens, cases } = load<{
      q_heads: number;
      head_dim: number;
      block_size: number;
      seq_lens: number[];
      scale: number;
    }>('paged_decode');
    it.each(cases)('$prefix $q_heads heads of $head_dim, blocks of $block_size, contexts $seq_lens', (c) =>
      scope(() => {
        const table = goldens.get(`${c.prefix}block_table`);
        const o = ops.pagedAttention(
          upload(goldens, `${c.prefix}q`),
          upload(goldens, `${c.prefix}k_cache`),
          upload(goldens, `${c.prefix}v_cache`),
          {
            cuSeqlensQ: ints(c.seq_lens.map((_, i) => i).concat(c.seq_lens.length)),
            blockTable: ints(table.data, table.shape),
            contextLens: ints(c.seq_lens),
            scale: c.scale,
          },
        );
        expectClose(o.toFloat32(), goldens.get(`${c.prefix}y`).data, { atol: 2e-5 });
      }),
    );
  });

  describe('lora', () => {
    const { goldens, cases } = load<{ out: number; in: number; r: number; scaling: number }>('lora');
    it.each(cases)('$prefix $out×$in, rank $r', (c) =>
      scope(() => {
        const [a, b] = [upload(goldens, `${c.prefix}lora_A`), upload(goldens, `${c.prefix}lora_B`)];
        const merged = ops.loraMerge(upload(goldens, `${c.prefix}w`), a, b, c.scaling);
        expectClose(merged.toFloat32(), goldens.get(`${c.prefix}merged`).data, { atol: 1e-6, rtol: 1e-6 });
        const y = ops.linear(upload(goldens, `${c.prefix}x`), merged);
        expectClose(y.toFloat32(), goldens.get(`${c.prefix}y`).data, { atol: 2e-5 });
        const half = ops.loraMerge(upload(goldens, `${c.prefix}w`, 'f16'), a, b, c.scaling);
        expectClose(half.toFloat32(), goldens.get(`${c.prefix}merged`).data, { atol: 2e-3 });
      }),
    );
  });
});

/** Row numbers of the valid query and key rows per sequence: padding is left out, packed attention has none. */
function rowsOf(
  prefix: string,
  lengths: number[] | undefined,
  batch: number,
  lq: number,
  lk: number,
): { q: number[][]; k: number[][] } {
  const all = (b: number, n: number): number[] => Array.from({ length: n }, (_, i) => b * n + i);
  const sequences = Array.from({ length: batch }, (_, b) => b);
  if (lengths === undefined) return { q: sequences.map((b) => all(b, lq)), k: sequences.map((b) => all(b, lk)) };
  const valid = (b: number): number[] =>
    prefix.includes('left') ? all(b, lk).slice(lk - lengths[b]!) : all(b, lk).slice(0, lengths[b]);
  return { q: sequences.map(valid), k: sequences.map(valid) };
}

function offsets(rows: number[][]): number[] {
  const sums = [0];
  for (const row of rows) sums.push(sums.at(-1)! + row.length);
  return sums;
}
