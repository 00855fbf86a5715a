// The targets that the project has set itself, judged on the figures of this run. Nothing fails when one is missed.

import { DISPATCH_TARGET } from './ops/dispatch.js';
import { GEMV_TARGET } from './ops/gemv-bandwidth.js';
import { GEMM_TARGET } from './ops/linear.js';
import type { Report } from './report.js';
import { formatFigure, formatTime, round } from './report-rows.js';
import { computePeak, type Peaks, type Row } from './row.js';

export interface Verdict {
  target: string;
  measured: string;
  verdict: 'PASS' | 'MISS' | 'not run';
}

const GEMM_SHARE = 0.7;
const GEMV_PERCENT = 70;
const DISPATCH_MS = 0.3e-3;

/** Verdicts on what the report contains. */
export function judgeTargets(report: Report): Verdict[] {
  const one = report.peaks.filter(({ threads }) => threads === 1);
  const verdicts = one.map((peaks) => {
    const limit = computePeak(peaks, 'f32');
    return judge(
      report,
      peaks,
      `f32 GEMM ${GEMM_TARGET} ≥ 70 % of the peak, one core`,
      GEMM_TARGET,
      ({ flops, timing }) => {
        const rate = flops! / timing!.median / 1e6;
        return {
          share: rate / limit / GEMM_SHARE,
          text: `${round(rate)} of ${round(limit)} GFLOP/s: ${percent(rate / limit)}`,
        };
      },
    );
  });
  for (const peaks of report.peaks) {
    const target = `bf16 GEMV ≥ 70 % of DRAM read, ${peaks.threads} thread(s)`;
    verdicts.push(
      judge(report, peaks, target, GEMV_TARGET, ({ figures }) => {
        const { share, weights, 'DRAM read': read } = figures!;
        return { share: share!.value / GEMV_PERCENT, text: [weights!, read!, share!].map(formatFigure).join(', ') };
      }),
      judge(report, peaks, `op dispatch ≤ 0.3 µs, ${peaks.threads} thread(s)`, DISPATCH_TARGET, ({ timing }) => {
        return { share: DISPATCH_MS / timing!.median, text: formatTime(timing!.median) };
      }),
    );
  }
  return verdicts;
}

function judge(
  report: Report,
  peaks: Peaks,
  target: string,
  name: string,
  measure: (row: Row) => { share: number; text: string },
): Verdict {
  const row = report.rows.find((candidate) => candidate.name === name && candidate.threads === peaks.threads);
  if (row?.timing === undefined && row?.figures === undefined)
    return { target, measured: row?.error ?? '', verdict: 'not run' };
  const { share, text } = measure(row);
  return { target, measured: text, verdict: share >= 1 ? 'PASS' : 'MISS' };
}

function percent(share: number): string {
  return `${Math.round(100 * share)} %`;
}
