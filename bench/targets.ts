// The targets that the project has set itself, judged on the figures of this run. Nothing fails when one is missed.

import { DISPATCH_TARGET } from './ops/dispatch.js';
import { GEMM_TARGET, GEMV_TARGET, INT4_GEMV_TARGET, INT8_GEMV_TARGET } from './ops/limit-shares.js';
import type { Report } from './report.js';
import { formatFigure, formatTime } from './report-rows.js';
import type { Peaks, Row } from './row.js';

export interface Verdict {
  target: string;
  measured: string;
  verdict: 'PASS' | 'MISS' | 'not run';
}

const SHARE_PERCENT = 70;
const DISPATCH_MS = 0.3e-3;

/** Verdicts on what the report contains. */
export function judgeTargets(report: Report): Verdict[] {
  return report.peaks.flatMap((peaks) => {
    const of = `${peaks.threads} thread(s)`;
    const gemm = share(report, peaks, `f32 GEMM ≥ ${SHARE_PERCENT} % of the FMA peak, ${of}`, GEMM_TARGET);
    return [
      ...(peaks.threads === 1 ? [gemm] : []),
      ...Object.entries({ bf16: GEMV_TARGET, int8: INT8_GEMV_TARGET, int4: INT4_GEMV_TARGET }).map(([dtype, name]) =>
        share(report, peaks, `${dtype} GEMV ≥ ${SHARE_PERCENT} % of DRAM read, ${of}`, name),
      ),
      judge(report, peaks, `op dispatch ≤ 0.3 µs, ${of}`, DISPATCH_TARGET, ({ timing }) => {
        return { share: DISPATCH_MS / timing!.median, text: formatTime(timing!.median) };
      }),
    ];
  });
}

function share(report: Report, peaks: Peaks, target: string, name: string): Verdict {
  return judge(report, peaks, target, name, ({ figures }) => {
    const { share, product, limit } = figures!;
    return { share: share!.value / SHARE_PERCENT, text: [product!, limit!, share!].map(formatFigure).join(', ') };
  });
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
