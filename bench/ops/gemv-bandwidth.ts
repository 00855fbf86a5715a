// The bandwidth target: a bf16 matrix-vector product against what this machine can read from DRAM. On a shared host the
// bandwidth itself moves by tens of percent within seconds, so both are measured in turn, several times, and each ratio is
// of neighbours.

import { ops, scope } from '../../lib/tensor/index.js';
import { measureDram } from '../machine.js';
import { alternate, quantile } from '../measure.js';
import { randomTensor, Rotation } from '../random.js';
import type { Row } from '../row.js';

const [N, K] = [4096, 4096];
/** The row that the target is about. */
export const GEMV_TARGET = `M=1 N=${N} K=${K} bf16, share of DRAM read measured in turn`;

/** Ratios of `rounds` rounds. */
export function gemvBandwidthRow(threads: number, rounds: number, budget: number): Row {
  const x = randomTensor([1, K]);
  const weights = new Rotation(2 * N * K, () => randomTensor([N, K], 'bf16', 1 / Math.sqrt(K)));
  const product = () => scope(() => void ops.linear(x, weights.next()));
  const rates: number[] = [];
  const reads: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const before = measureDram().median;
    rates.push((2 * N * K) / alternate([product], budget / rounds)[0]!.median / 1e6);
    reads.push((before + measureDram().median) / 2);
  }
  [x, ...weights.copies].forEach((tensor) => tensor.dispose());
  const spread = (values: number[], unit: string) => {
    const sorted = [...values].sort((a, b) => a - b);
    return { value: quantile(sorted, 0.5), min: sorted[0]!, max: sorted.at(-1)!, unit };
  };
  const shares = rates.map((rate, i) => (100 * rate) / reads[i]!);
  const figures = { share: spread(shares, '%'), weights: spread(rates, 'GB/s'), 'DRAM read': spread(reads, 'GB/s') };
  return { group: 'linear', name: GEMV_TARGET, threads, figures };
}
