// Is memory flat? Readings of the resident set over a long run, and the straight line through those after the warm-up.

import { setImmediate as nextTurn } from 'node:timers/promises';

const MIB = 2 ** 20;
/** Part of the run that may still grow: pools fill, caches reach their bound, code is compiled. */
const WARM_UP = 0.25;
/** Growth over the rest of a run, MiB, that the noise of allocator and garbage collector explains. */
export const ALLOWED_GROWTH_MIB = 16;

/** One reading. */
export interface Reading {
  /** Cycles or requests done. */
  done: number;
  /** Resident set, MiB. */
  rss: number;
  /** JavaScript heap of the main thread, MiB. */
  heap: number;
  /** Bytes outside of the JavaScript heap that it owns, MiB. */
  external: number;
}

/** What the readings after the warm-up say. MiB. */
export interface Flatness {
  /** Growth per 1,000 cycles or requests, of the fitted line. */
  slope: number;
  /** Growth of the fitted line from the end of the warm-up to the end of the run. */
  growth: number;
  first: number;
  last: number;
  peak: number;
  flat: boolean;
}

/** Reads memory after a collection, where Node runs with --expose-gc. */
export async function readMemory(done: number): Promise<Reading> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await nextTurn();
  }
  const { rss, heapUsed, external } = process.memoryUsage();
  return { done, rss: rss / MIB, heap: heapUsed / MIB, external: external / MIB };
}

/** Least-squares line through the readings after the warm-up. */
export function judgeFlatness(readings: readonly Reading[]): Flatness {
  const total = readings.at(-1)?.done ?? 0;
  const settled = readings.filter(({ done }) => done >= WARM_UP * total);
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(settled.map(({ done }) => done)), mean(settled.map(({ rss }) => rss))];
  const covariance = mean(settled.map(({ done, rss }) => (done - x) * (rss - y)));
  const variance = mean(settled.map(({ done }) => (done - x) ** 2));
  const slope = variance > 0 ? covariance / variance : 0;
  const growth = slope * (total - (settled[0]?.done ?? 0));
  const peak = Math.max(...readings.map(({ rss }) => rss));
  const [first, last] = [settled[0]?.rss ?? NaN, settled.at(-1)?.rss ?? NaN];
  return { slope: slope * 1000, growth, first, last, peak, flat: growth <= ALLOWED_GROWTH_MIB };
}

export function describeFlatness({ slope, growth, first, last, peak, flat }: Flatness): string {
  const figures = `RSS ${first.toFixed(1)} → ${last.toFixed(1)} MiB after the warm-up, peak ${peak.toFixed(1)}`;
  return `${figures}; fitted ${slope.toFixed(2)} MiB per 1,000, ${growth.toFixed(1)} in all: ${flat ? 'flat' : 'GROWS'}`;
}
