// The products that the project's targets are about, against the limit that binds them: matrix-vector products in bf16, int8
// and int4 against what this machine reads from DRAM, an f32 matrix product against its rate of multiply-adds. On a shared host
// the limits themselves move by tens of percent within seconds, so product and limit are measured in turn, several times,
// and each ratio is of neighbours.

import { ops, scope, Tensor } from '../../lib/tensor/index.js';
import { measureLimit } from '../machine.js';
import { alternate, quantile } from '../measure.js';
import { randomTensor, Rotation } from '../random.js';
import type { Figure, Row } from '../row.js';

/** Columns of a group, as models are loaded. */
const QUANTIZED_GROUP = 64;

interface Target {
  name: string;
  m: number;
  n: number;
  k: number;
  dtype: 'f32' | 'bf16' | 'int8' | 'int4';
  limit: 'dram' | 'f32';
}

/** The rows that the targets are about. */
export const GEMV_TARGET = 'M=1 N=4096 K=4096 bf16, share of DRAM read measured in turn';
export const INT8_GEMV_TARGET = 'M=1 N=4096 K=4096 int8, share of DRAM read measured in turn';
export const INT4_GEMV_TARGET = 'M=1 N=4096 K=4096 int4, share of DRAM read measured in turn';
export const GEMM_TARGET = 'M=257 N=6144 K=1408 f32, share of the FMA peak measured in turn';

const TARGETS: readonly Target[] = [
  { name: GEMV_TARGET, m: 1, n: 4096, k: 4096, dtype: 'bf16', limit: 'dram' },
  { name: INT8_GEMV_TARGET, m: 1, n: 4096, k: 4096, dtype: 'int8', limit: 'dram' },
  { name: INT4_GEMV_TARGET, m: 1, n: 4096, k: 4096, dtype: 'int4', limit: 'dram' },
  { name: GEMM_TARGET, m: 257, n: 6144, k: 1408, dtype: 'f32', limit: 'f32' },
];

/** The rows, those whose name contains `filter`; ratios of `rounds` rounds. */
export function limitShareRows(threads: number, rounds: number, budget: number, filter: string): Row[] {
  const chosen = TARGETS.filter(({ name }) => `linear ${name}`.includes(filter));
  return chosen.map((target) => limitShareRow(target, threads, rounds, budget));
}

function limitShareRow(target: Target, threads: number, rounds: number, budget: number): Row {
  const { name, m, n, k, limit } = target;
  const x = randomTensor([m, k]);
  const weights = rotatedWeights(target);
  const work = limit === 'dram' ? weightBytes(target) : 2 * m * n * k;
  const unit = limit === 'dram' ? 'GB/s' : 'GFLOP/s';
  const product = () => scope(() => void multiply(x, weights.next()));
  const rates: number[] = [];
  const limits: number[] = [];
  let before = measureLimit(limit).median;
  for (let round = 0; round < rounds; round++) {
    rates.push(work / alternate([product], budget / rounds)[0]!.median / 1e6);
    const after = measureLimit(limit).median;
    limits.push((before + after) / 2);
    before = after;
  }
  [x, ...weights.copies.flatMap((w) => (w instanceof Tensor ? [w] : [w.q, w.scales]))].forEach((t) => t.dispose());
  const shares = rates.map((rate, i) => (100 * rate) / limits[i]!);
  const figures = { share: spread(shares, '%'), product: spread(rates, unit), limit: spread(limits, unit) };
  return { group: 'linear', name, threads, figures };
}

type Weight = Tensor | ops.QuantizedWeight;

function multiply(x: Tensor, w: Weight): Tensor {
  return w instanceof Tensor ? ops.linear(x, w) : ops.quantLinear(x, w);
}

function rotatedWeights(target: Target): Rotation<Weight> {
  const { n, k, dtype } = target;
  const scale = 1 / Math.sqrt(k);
  const quantized = (bits: 4 | 8): Weight => {
    const dense = randomTensor([n, k], 'f32', scale);
    const weight = ops.quantize(dense, { bits, group: QUANTIZED_GROUP });
    dense.dispose();
    return weight;
  };
  return new Rotation<Weight>(weightBytes(target), () =>
    dtype === 'int8' ? quantized(8) : dtype === 'int4' ? quantized(4) : randomTensor([n, k], dtype, scale),
  );
}

/** Of quantised weights with their bf16 scales, one per group. */
function weightBytes({ n, k, dtype }: Target): number {
  const bitsPerWeight = { f32: 32, bf16: 16, int8: 8 + 16 / QUANTIZED_GROUP, int4: 4 + 16 / QUANTIZED_GROUP };
  return (n * k * bitsPerWeight[dtype]) / 8;
}

function spread(values: number[], unit: string): Figure {
  const sorted = [...values].sort((a, b) => a - b);
  return { value: quantile(sorted, 0.5), min: sorted[0]!, max: sorted.at(-1)!, unit };
}
