// The report of a comparison with peers: JSON with every number, a Markdown table, and a picture. What is lost is shown as lost.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../lib/package-root.js';
import type { Machine } from '../machine.js';
import { reportName, round, table } from '../report-rows.js';
import type { Peaks } from '../row.js';
import { causesOf } from './causes.js';
import { inUnit, type ComparisonRow, type RivalFigures, type Spread, type Unit } from './comparison.js';
import type { Fact } from './fact.js';
import type { PeerState } from './install.js';
import { picture } from './picture.js';

export interface PeerReport {
  machine: Machine;
  smoke: boolean;
  peers: PeerState[];
  peaks: Peaks[];
  rows: ComparisonRow[];
  facts: Fact[];
}

/** Writes `bench/results/DATE-peers-CPU.{json,md,svg}`; returns the paths. */
export function writePeerReport(report: PeerReport, save: boolean): string[] {
  const folder = join(packageRoot(), 'bench', 'results', ...(save ? ['saved'] : []));
  mkdirSync(folder, { recursive: true });
  const base = join(folder, reportName(report.machine, 'peers'));
  const files = {
    json: `${JSON.stringify(report, undefined, 1)}\n`,
    md: peerMarkdown(report, `${reportName(report.machine, 'peers')}.svg`),
    svg: picture(report.rows, report.machine),
  };
  return Object.entries(files).map(([extension, text]) => {
    writeFileSync(`${base}.${extension}`, text);
    return `${base}.${extension}`;
  });
}

/** An earlier report whose rows `report` gets where it has none of the same name and threads. */
export function mergeReport(report: PeerReport, file: string): void {
  const earlier = JSON.parse(readFileSync(file, 'utf8')) as PeerReport;
  const key = ({ group, name, threads }: { group: string; name: string; threads?: number }) =>
    `${group} / ${name} / ${threads}`;
  const merge = <T extends { group: string; name: string; threads?: number }>(old: T[], fresh: T[]) => {
    const known = new Map(fresh.map((row) => [key(row), row]));
    const kept = old.map((row) => known.get(key(row)) ?? row);
    const had = new Set(old.map(key));
    return [...kept, ...fresh.filter((row) => !had.has(key(row)))];
  };
  report.rows = merge(earlier.rows, report.rows);
  report.facts = merge(earlier.facts, report.facts);
  report.peaks = [
    ...earlier.peaks.filter(({ threads }) => !report.peaks.some((peak) => peak.threads === threads)),
    ...report.peaks,
  ].sort((a, b) => a.threads - b.threads);
  report.peers = [
    ...earlier.peers.filter(({ name }) => !report.peers.some((peer) => peer.name === name)),
    ...report.peers,
  ];
}

/** The report as Markdown; `svg` is the picture's file name beside it. */
export function peerMarkdown(report: PeerReport, svg: string): string {
  const { machine, peers, peaks, rows, facts } = report;
  const verdicts = [...rows.flatMap(({ judgements }) => judgements), ...facts].map(({ verdict }) => verdict);
  const count = (verdict: string) => verdicts.filter((one) => one === verdict).length;
  const lines = [
    `# Comparison with peers of ${machine.date.slice(0, 10)}, ${machine.cpu}`,
    '',
    ...(report.smoke ? ['A smoke run: few samples, figures mean little.', ''] : []),
    `- ${machine.cores} cores, ${Math.round(machine.memory / 2 ** 30)} GiB memory, ${machine.kernel}, Node ${machine.node}, commit ${machine.commit}`,
    ...peers.map(({ name, version, missing }) => `- ${name}: ${version ?? `**missing**, ${missing}`}`),
    ...peaks.map(
      ({ threads, isa, f32, bf16, dram }) =>
        `- limits with ${threads} thread(s), ${isa}: f32 ${round(f32.max)} GFLOP/s, bf16 ${bf16 === undefined ? '–' : round(bf16.max)} GFLOP/s, DRAM read ${round(dram.median)} GB/s`,
    ),
    '- Contestants are warm, pinned to the same CPUs and take turns; the ratio is of neighbouring turns: median (middle half).',
    '- "Ratio" above 1: ours is faster. "Others": what other processes used meanwhile, in % of one core.',
    `- Bars: ${count('met')} met, ${count('LOST')} lost, ${count('not run')} not run.`,
    '',
    `![Our speed over each peer's](${svg})`,
  ];
  const threads = [...new Set(rows.map((row) => row.threads))].sort((a, b) => a - b);
  for (const count of threads) {
    lines.push('', `## ${count} thread${count === 1 ? '' : 's'}`, '');
    const header = ['work', 'ours', 'peer', '', 'ratio', 'of the limit', 'bar', '', ''];
    lines.push(...table(header, rows.filter((row) => row.threads === count).flatMap(rowCells)));
  }
  if (facts.length > 0) {
    lines.push('', '## Single figures', '');
    const cells = facts.map(({ group, name, threads, value, unit, note, bar, verdict }) => [
      `${group}: ${name}`,
      threads === undefined ? '' : String(threads),
      value === undefined ? '' : `${round(value)} ${unit}`,
      bar ?? '',
      emphasised(verdict),
      note ?? '',
    ]);
    lines.push(...table(['', 'threads', 'measured', 'bar', '', ''], cells));
  }
  const causes = causesOf(lostIn(report));
  if (causes.length > 0) {
    const whose = 'Figures are of a Zen 5 EPYC, whatever this report is of, but where an entry names another machine.';
    lines.push('', '## Causes found of what is lost', '', whose, '', ...causes);
  }
  return `${lines.join('\n')}\n`;
}

function lostIn({ rows, facts }: PeerReport): string[] {
  const lost = rows.filter(({ judgements }) => judgements.some(({ verdict }) => verdict === 'LOST'));
  return [...lost, ...facts.filter(({ verdict }) => verdict === 'LOST')].map(({ group, name }) => `${group}: ${name}`);
}

// One line for each peer; what concerns ours stands in the first.
function rowCells(row: ComparisonRow): string[][] {
  const { group, name, unit, ours, error, limit, judgements, note } = row;
  const figure = ours === undefined ? `failed: ${error}` : inRange(row, ours);
  const own = [`${group}: ${name}${note ? ` (${note})` : ''}`, `${figure} ${ours === undefined ? '' : unit}`];
  const share = limit === undefined ? '' : `${shown(limit.share, 100)} % of ${limit.name}`;
  const bars = [
    judgements.map(({ bar, measured }) => `${bar}: ${measured}`).join('<br>'),
    judgements.map(({ verdict }) => emphasised(verdict)).join('<br>'),
  ];
  const others = ours?.others === undefined ? [] : [`others ${Math.round(100 * ours.others)} %`];
  const conditions = ours === undefined ? '' : [`${ours.samples} turns`, ...others].join(', ');
  const rivals = row.rivals.length === 0 ? [undefined] : row.rivals;
  return rivals.map((rival, i) => {
    const cells = rival === undefined ? ['', '', ''] : rivalCells(row, rival);
    return i === 0 ? [...own, ...cells, share, ...bars, conditions] : ['', '', ...cells, '', '', '', ''];
  });
}

function rivalCells(row: ComparisonRow, { peer, weights, timing, ratio, note, error }: RivalFigures): string[] {
  const who = `${peer} ${weights}${note ? ` (${note})` : ''}`;
  const figure = timing === undefined ? (error ?? 'not run') : `${inRange(row, timing)} ${row.unit}`;
  return [who, figure, ratio === undefined ? '' : shown(ratio)];
}

/** "12.3 (11.9–12.4)": median and middle half, in the unit of the row. */
function inRange(
  row: { unit: Unit; amount: number },
  { median, p25, p75 }: { median: number; p25: number; p75: number },
): string {
  const [low, high] = [p25, p75].map((ms) => inUnit(row, ms)).sort((a, b) => a - b);
  return `${round(inUnit(row, median))} (${round(low!)}–${round(high!)})`;
}

function shown({ median, p25, p75 }: Spread, times = 1): string {
  return `${round(times * median)} (${round(times * p25)}–${round(times * p75)})`;
}

function emphasised(verdict: string | undefined): string {
  return verdict === 'LOST' ? '**LOST**' : (verdict ?? '');
}
