// Parts of a report as text: a row's time, rates and share of the limit that binds it, tables, the report's name.

import type { Machine } from './machine.js';
import { shareOfLimit, type Figure, type Peaks, type Row } from './row.js';

/** The cells of a timed row. */
export interface Cells {
  time: string;
  spread: string;
  gflops: string;
  gbs: string;
  share: string;
  others: string;
}

/** "1.23 ms", "45.6 µs", "78 ns"; `ms` in milliseconds. */
export function formatTime(ms: number): string {
  if (ms >= 1) return `${round(ms)} ms`;
  if (ms >= 1e-3) return `${round(ms * 1e3)} µs`;
  return `${round(ms * 1e6)} ns`;
}

export function cellsOf(row: Row, peaks: Peaks): Cells | undefined {
  const { timing, flops, bytes } = row;
  if (timing === undefined) return undefined;
  const seconds = timing.median / 1000;
  const share = shareOfLimit(row, peaks);
  const limit = share?.limit === 'compute' ? `${row.compute} peak` : `${row.memory?.toUpperCase()} read`;
  return {
    time: formatTime(timing.median),
    spread: `${formatTime(timing.min)} – ${formatTime(timing.max)}`,
    gflops: flops === undefined ? '' : round(flops / seconds / 1e9),
    gbs: bytes === undefined ? '' : round(bytes / seconds / 1e9),
    share: share === undefined ? '' : `${Math.round(100 * share.share)} % of ${limit}`,
    others: timing.others === undefined ? '' : `${Math.round(100 * timing.others)} %`,
  };
}

/** A line for the console. */
export function describeRow(row: Row, peaks: Peaks): string {
  const title = `${row.group.padEnd(14)} ${row.name}`;
  const figures = Object.entries(row.figures ?? {}).map(([name, figure]) => `${name} ${formatFigure(figure)}`);
  const error = row.error === undefined ? [] : [`FAILED: ${row.error}`];
  const cells = cellsOf(row, peaks);
  if (cells === undefined) return `${title}: ${[...figures, ...error].join(', ')}`;
  const rates = [cells.gflops && `${cells.gflops} GFLOP/s`, cells.gbs && `${cells.gbs} GB/s`, cells.share];
  const others = cells.others === '' ? '' : `(others used ${cells.others} of a core)`;
  return [`${title}:`, `${cells.time} (${cells.spread})`, ...rates, ...figures, others, ...error]
    .filter(Boolean)
    .join('  ');
}

export function formatFigure({ value, unit, min, max }: Figure): string {
  const spread = min === undefined || max === undefined ? '' : ` (${round(min)}–${round(max)})`;
  return `${round(value)} ${unit}${spread}`;
}

/** Three significant digits. */
export function round(value: number): string {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return value.toFixed(Math.min(digits, 3));
}

/** Lines of a Markdown table. */
export function table(header: string[], rows: string[][]): string[] {
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`;
  return [line(header), line(header.map(() => '---')), ...rows.map(line)];
}

/** File name of a report without its ending: date to the second, or two runs of one minute would share it, kind, CPU. */
export function reportName({ date, cpu }: Machine, kind?: string): string {
  const parts = [date.slice(0, 19).replaceAll(':', ''), kind, cpu.replaceAll(/[^\w]+/g, '-').toLowerCase()];
  return parts.filter((part) => part !== undefined).join('-');
}
