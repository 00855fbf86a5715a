// Is memory flat? Readings of the resident set over a long run, at rest, and the straight line through them.
//
// At rest: garbage is collected and an idle engine has given freed memory back. Without that the free memory of the C
// library, 30 to 50 MiB that come and go with the image decoder's threads, hides everything else.

import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

const MIB = 2 ** 20;
/** Longer than an engine is idle before it gives memory back, ms. */
const REST_MS = 1000;
/** Growth over a run, MiB, that is noise: readings of one run that grows nothing scatter by this much. */
export const ALLOWED_GROWTH_MIB = 4;

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

/** What the readings say. MiB. */
export interface Flatness {
  /** Growth per 1,000 cycles or requests, of the fitted line. */
  slope: number;
  /** Growth of the fitted line over the readings judged. */
  growth: number;
  /** Largest distance of a reading from the line. */
  noise: number;
  first: number;
  last: number;
  peak: number;
  flat: boolean;
}

/** Reads memory at rest: after a collection, where Node runs with --expose-gc. */
export async function readMemory(done: number): Promise<Reading> {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await nextTurn();
  }
  await sleep(REST_MS);
  const { rss, heapUsed, external } = process.memoryUsage();
  return { done, rss: rss / MIB, heap: heapUsed / MIB, external: external / MIB };
}

/** Least-squares line through the readings, but for the first `warmUp` (a part of the run). */
export function judgeFlatness(readings: readonly Reading[], warmUp = 0): Flatness {
  const total = readings.at(-1)?.done ?? 0;
  const settled = readings.filter(({ done }) => done >= warmUp * total);
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(settled.map(({ done }) => done)), mean(settled.map(({ rss }) => rss))];
  const covariance = mean(settled.map(({ done, rss }) => (done - x) * (rss - y)));
  const variance = mean(settled.map(({ done }) => (done - x) ** 2));
  const slope = variance > 0 ? covariance / variance : 0;
  const growth = slope * (total - (settled[0]?.done ?? 0));
  const noise = Math.max(...settled.map(({ done, rss }) => Math.abs(rss - y - slope * (done - x))));
  const peak = Math.max(...readings.map(({ rss }) => rss));
  const [first, last] = [settled[0]?.rss ?? NaN, settled.at(-1)?.rss ?? NaN];
  return { slope: slope * 1000, growth, noise, first, last, peak, flat: growth <= ALLOWED_GROWTH_MIB };
}

export function describeFlatness({ slope, growth, noise, first, last, peak, flat }: Flatness): string {
  const figures = `RSS ${first.toFixed(1)} → ${last.toFixed(1)} MiB after the warm-up, peak ${peak.toFixed(1)}`;
  const line = `fitted ${slope.toFixed(2)} MiB per 1,000, ${growth.toFixed(1)} in all, readings within ${noise.toFixed(1)}`;
  return `${figures}; ${line}: ${flat ? 'flat' : 'GROWS'}`;
}
