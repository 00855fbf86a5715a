// What a benchmark is and what it yields. A case says how much work one call does; the harness turns time into rates and
// rates into shares of the machine's measured limits.

import type { Timing } from './measure.js';

/** Which limit of the machine the arithmetic is compared with. */
export type Compute = 'f32' | 'bf16';
/** Where the data of a call comes from: `dram` rows rotate copies that no cache can hold. */
export type Memory = 'dram' | 'l3' | 'l2';

/** Work of one call. */
export interface Work {
  /** Floating-point operations; a multiply-add counts as two. */
  flops?: number;
  /** Bytes that must move at least once. */
  bytes?: number;
  compute?: Compute;
  memory?: Memory;
}

/** One benchmark: `prepare` makes the data and returns what is timed. */
export interface Case extends Work {
  group: string;
  name: string;
  /** Calls of one `run`, for chains; the time is divided by it. */
  calls?: number;
  prepare(): { run: () => void; dispose: () => void };
}

/** A measured quantity that is not a rate of arithmetic or bytes: tokens/s, ms, MB. */
export interface Figure {
  value: number;
  unit: string;
  min?: number;
  max?: number;
}

/** A line of the report. */
export interface Row extends Work {
  group: string;
  name: string;
  threads: number;
  /** ms per call */
  timing?: Timing;
  figures?: Record<string, Figure>;
  /** Why there is no figure. */
  error?: string;
}

/** A limit as measured: several loops compete, the best median counts. GFLOP/s or GB/s. */
export interface Peak {
  median: number;
  min: number;
  max: number;
  samples: number;
  loop: string;
}

/** The limits with a number of threads. */
export interface Peaks {
  isa: string;
  threads: number;
  f32: Peak;
  bf16?: Peak;
  dram: Peak;
  l3: Peak;
  l2: Peak;
}

/** Share of the binding limit that a row reaches (1 = at the limit), and which limit binds; undefined without work. */
export function shareOfLimit(row: Row, peaks: Peaks): { share: number; limit: 'compute' | 'memory' } | undefined {
  if (row.timing === undefined) return undefined;
  const seconds = row.timing.median / 1000;
  const peak = row.compute === undefined ? undefined : computePeak(peaks, row.compute);
  const compute = row.flops === undefined || peak === undefined ? 0 : row.flops / (peak * 1e9) / seconds;
  const bandwidth = row.memory === undefined ? undefined : peaks[row.memory].median;
  const memory = row.bytes === undefined || bandwidth === undefined ? 0 : row.bytes / (bandwidth * 1e9) / seconds;
  if (compute === 0 && memory === 0) return undefined;
  return compute >= memory ? { share: compute, limit: 'compute' } : { share: memory, limit: 'memory' };
}

/** GFLOP/s. Arithmetic can only be slowed by others, so the fastest round counts; bandwidth truly varies: its median counts. */
export function computePeak(peaks: Peaks, compute: Compute): number {
  return (compute === 'bf16' ? (peaks.bf16 ?? peaks.f32) : peaks.f32).max;
}
