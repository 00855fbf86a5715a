// The op part: all cases one after the other; a case that fails is a row with its reason, and the rest goes on.

import { liveTensors, setThreads } from '../../lib/tensor/index.js';
import { measure } from '../measure.js';
import type { Options } from '../options.js';
import type { Case, Row } from '../row.js';
import { attentionCases } from './attention.js';
import { decodeStepCases, decodeStepOps } from './decode-step.js';
import { dispatchCases } from './dispatch.js';
import { limitShareRows } from './limit-shares.js';
import { linearCases } from './linear.js';
import { memoryBoundCases } from './memory-bound.js';
import { samplingCases } from './sampling.js';

/** Measures every op case and hands each row to `send`. */
export function runOps(options: Options, threads: number, send: (row: Row) => void): void {
  setThreads(threads);
  const { smoke, filter, budget } = options;
  const cases = [
    ...dispatchCases(),
    ...decodeStepCases(smoke),
    ...linearCases(smoke),
    ...attentionCases(smoke),
    ...memoryBoundCases(smoke),
    ...samplingCases(),
  ];
  for (const one of cases) {
    if (`${one.group} ${one.name}`.includes(filter)) send(runCase(one, threads, budget));
  }
  limitShareRows(threads, smoke ? 2 : 9, 4 * budget, filter).forEach(send);
  if ('decode step'.includes(filter)) {
    const figures = { ops: { value: decodeStepOps(), unit: 'ops' } };
    send({ group: 'decode step', name: 'ops of one step, demonstration model', threads, figures });
  }
}

function runCase(one: Case, threads: number, budget: number): Row {
  const { group, name, flops, bytes, compute, memory, calls = 1 } = one;
  const row: Row = { group, name, threads, flops, bytes, compute, memory };
  const before = liveTensors();
  try {
    const { run, dispose } = one.prepare();
    try {
      const { median, min, max, p25, p75, samples, others } = measure(run, budget);
      const per = (ms: number) => ms / calls;
      row.timing = { median: per(median), min: per(min), max: per(max), p25: per(p25), p75: per(p75), samples, others };
    } finally {
      dispose();
    }
    if (liveTensors() !== before) row.error = `${liveTensors() - before} tensors leaked`;
  } catch (error) {
    row.error = error instanceof Error ? error.message : String(error);
  }
  return row;
}
