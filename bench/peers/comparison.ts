// What is compared, and what becomes of the figures: pure functions from samples to ratios and verdicts.

import { quantile, summarise, type Timing } from '../measure.js';
import type { Peaks, Work } from '../row.js';
import { computePeak } from '../row.js';
import type { Job, Peer, Weights } from './protocol.js';
import type { ModelFile } from './model-files.js';

/** A rate (amount per second), or the time itself. */
export type Unit = 'tokens/s' | 'GFLOP/s' | 'GB/s' | 'ms';

/** A job without what the harness fills in. */
export type Task = WithoutThreads<Job>;
type WithoutThreads<J> = J extends Job ? Omit<J, 'threads'> : never;

/** A peer's side of a comparison. */
export interface Rival {
  peer: Peer;
  weights: Weights;
  task: Task;
  /** The part of the row's work that its runs do, where it is too slow for all of it. Default 1. */
  part?: number;
}

/** What a row must reach: so many times the speed of one peer, of the best one, or a share of the machine's limit. */
export interface Bar {
  against: { peer: Peer; weights: Weights } | 'best' | 'limit';
  atLeast: number;
}

/** One row: our task against the same work by others. `flops` and `bytes` are those of one run. */
export interface Comparison extends Work {
  group: string;
  name: string;
  unit: Unit;
  /** What one run does, in units of the rate times seconds; 1 where the time is shown. */
  amount: number;
  ours: Task;
  rivals: Rival[];
  bars: Bar[];
  /** Files that the tasks read. */
  files: ModelFile[];
  /** Share of the time that `--budget` gives each row. Default 1. */
  effort?: number;
}

/** Median with its range, of ratios. */
export interface Spread {
  median: number;
  min: number;
  max: number;
  p25: number;
  p75: number;
}

export interface RivalFigures {
  peer: Peer;
  weights: Weights;
  timing?: Timing;
  /** Our speed over its: above 1 we are faster. Of the runs next to each other. */
  ratio?: Spread;
  note?: string;
  /** Why there is no figure. */
  error?: string;
}

export interface Judgement {
  bar: string;
  measured: string;
  verdict: 'met' | 'LOST' | 'not run';
}

/** A row of the report. */
export interface ComparisonRow {
  group: string;
  name: string;
  threads: number;
  unit: Unit;
  amount: number;
  ours?: Timing;
  note?: string;
  error?: string;
  rivals: RivalFigures[];
  /** The machine's limit that binds, measured in the same turns; the share of it that our runs reach. */
  limit?: { name: string; rate: number; unit: string; share: Spread };
  judgements: Judgement[];
}

/** Times `before` of each turn over times `after` of the same turn: how many times faster the second is. */
export function ratios(before: readonly number[], after: readonly number[]): Spread {
  const count = Math.min(before.length, after.length);
  const { median, min, max, p25, p75 } = summarise(Array.from({ length: count }, (_, i) => before[i]! / after[i]!));
  return { median, min, max, p25, p75 };
}

/** The figure of a turn of several runs: their middle. */
export function middle(ms: readonly number[]): number {
  return quantile(
    [...ms].sort((a, b) => a - b),
    0.5,
  );
}

/** The rate of a row in its unit, or its time. */
export function inUnit({ unit, amount }: Pick<ComparisonRow, 'unit' | 'amount'>, ms: number): number {
  return unit === 'ms' ? ms : (1000 * amount) / ms;
}

/** Which limit binds a piece of work on this machine. */
export function bindingLimit(work: Work, peaks: Peaks): 'dram' | 'f32' | 'bf16' | undefined {
  const compute =
    work.flops === undefined || work.compute === undefined ? 0 : work.flops / computePeak(peaks, work.compute);
  const memory = work.bytes === undefined || work.memory !== 'dram' ? 0 : work.bytes / peaks.dram.median;
  if (compute === 0 && memory === 0) return undefined;
  if (memory > compute) return 'dram';
  return work.compute === 'bf16' && peaks.bf16 !== undefined ? 'bf16' : 'f32';
}

/** Verdicts on the bars of a comparison. */
export function judge(bars: readonly Bar[], row: ComparisonRow): Judgement[] {
  return bars.map(({ against, atLeast }) => {
    if (against === 'limit') {
      const bar = `≥ ${percent(atLeast)} of the limit`;
      return verdict(bar, row.limit?.share.median, atLeast, percent);
    }
    const found = row.rivals.filter(
      ({ peer, weights }) => against === 'best' || (against.peer === peer && against.weights === weights),
    );
    const times = found.filter(({ ratio }) => ratio !== undefined);
    const hardest = times.sort((a, b) => a.ratio!.median - b.ratio!.median)[0];
    const of = against === 'best' ? 'the best peer' : `${against.peer} ${against.weights}`;
    const by = against === 'best' && hardest !== undefined ? ` (${hardest.peer} ${hardest.weights})` : '';
    return verdict(`≥ ${atLeast} × ${of}${by}`, hardest?.ratio!.median, atLeast, (value) => `${value.toFixed(2)} ×`);
  });
}

function verdict(bar: string, value: number | undefined, atLeast: number, show: (value: number) => string): Judgement {
  if (value === undefined || Number.isNaN(value)) return { bar, measured: '', verdict: 'not run' };
  return { bar, measured: show(value), verdict: value >= atLeast ? 'met' : 'LOST' };
}

function percent(share: number): string {
  return `${Math.round(100 * share)} %`;
}
