// Measuring: warm up, take many samples, report the median with its spread.
//
// A sample is a loop long enough for the clock (≥ SAMPLE_MS), so that figures of a microsecond can be trusted. Two or more
// candidates are sampled in turn (A B A B …), so that a slow moment of a shared machine hits each of them alike. The share of
// the CPUs that other processes used meanwhile is reported with every figure: a busy machine shows.
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';

const SAMPLE_MS = 0.5;
const MIN_SAMPLES = 5;
const MAX_SAMPLES = 301;
/** Length of one tick of /proc/stat, in ms (USER_HZ is 100 on every Linux). */
const TICK_MS = 10;

/** Milliseconds per call: the middle of the samples and their range. */
export interface Timing {
  median: number;
  min: number;
  max: number;
  /** Middle half of the samples. */
  p25: number;
  p75: number;
  samples: number;
  /** CPU time of other processes over the time measured, in cores; undefined when it cannot be known. */
  others: number | undefined;
}

/** Sorted-sample quantile, nearest rank. */
export function quantile(sorted: readonly number[], q: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? NaN;
}

/** Summary of samples in ms. */
export function summarise(samples: readonly number[], others?: number): Timing {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (q: number) => quantile(sorted, q);
  return { median: at(0.5), min: at(0), max: at(1), p25: at(0.25), p75: at(0.75), samples: sorted.length, others };
}

/** One call of `run` takes its `Timing` in about `budgetMs` of wall time, warm-up included. */
export function measure(run: () => void, budgetMs: number): Timing {
  return alternate([run], budgetMs)[0]!;
}

/** Samples several functions in turn; the budget is shared. */
export function alternate(runs: readonly (() => void)[], budgetMs: number): Timing[] {
  const loops = runs.map((run) => loopLength(run, budgetMs / (5 * runs.length)));
  const samples: number[][] = runs.map(() => []);
  const load = new OtherLoad();
  const end = performance.now() + budgetMs * 0.8;
  while (samples[0]!.length < MIN_SAMPLES || (performance.now() < end && samples[0]!.length < MAX_SAMPLES)) {
    runs.forEach((run, i) => samples[i]!.push(timeLoop(run, loops[i]!)));
  }
  const others = load.cores();
  return samples.map((values) => summarise(values, others));
}

function timeLoop(run: () => void, loops: number): number {
  const start = performance.now();
  for (let i = 0; i < loops; i++) run();
  return (performance.now() - start) / loops;
}

// Warms up for a while and returns how many calls make a sample.
function loopLength(run: () => void, warmUpMs: number): number {
  run();
  const end = performance.now() + warmUpMs;
  let loops = 1;
  for (;;) {
    const each = timeLoop(run, loops);
    if (performance.now() >= end) return Math.max(1, Math.ceil(SAMPLE_MS / Math.max(each, 1e-6)));
    if (each * loops < SAMPLE_MS) loops *= 2;
  }
}

/** CPU time that processes other than this one and `pids` use on this machine from construction on. */
export class OtherLoad {
  readonly #busy = busyMs();
  readonly #own: number;
  readonly #start = performance.now();

  constructor(private readonly pids: readonly number[] = []) {
    this.#own = ownMs(pids);
  }

  /** Mean number of cores busy with others, or undefined when too little time has passed or the system does not tell. */
  cores(): number | undefined {
    const elapsed = performance.now() - this.#start;
    const busy = busyMs();
    if (busy === undefined || this.#busy === undefined || elapsed < 10 * TICK_MS) return undefined;
    return Math.max(0, (busy - this.#busy - (ownMs(this.pids) - this.#own)) / elapsed);
  }
}

// Of this process exactly; where others count as well, in ticks, with the children of each that have ended.
function ownMs(pids: readonly number[]): number {
  if (pids.length > 0) return [process.pid, ...pids].reduce((sum, pid) => sum + processMs(pid), 0);
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function processMs(pid: number): number {
  try {
    // utime, stime, cutime, cstime; the name in brackets before them may hold anything
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ')
      .slice(11, 15)
      .map(Number);
    return TICK_MS * fields.reduce((sum, ticks) => sum + ticks, 0);
  } catch {
    return 0;
  }
}

function busyMs(): number | undefined {
  try {
    const fields = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]!.trim().split(/\s+/).slice(1).map(Number);
    const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = fields;
    return (user + nice + system + irq + softirq + steal) * TICK_MS;
  } catch {
    return undefined;
  }
}
