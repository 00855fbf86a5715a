// The report: JSON with every number, Markdown to read. Targets that are missed are shown as missed.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../lib/package-root.js';
import type { Machine } from './machine.js';
import { cellsOf, formatFigure, reportName, round, table } from './report-rows.js';
import type { Peaks, Row } from './row.js';
import { judgeTargets } from './targets.js';

export interface Report {
  machine: Machine;
  smoke: boolean;
  peaks: Peaks[];
  rows: Row[];
}

/** Writes `bench/results/DATE-CPU.{json,md}`; returns the paths. */
export function writeReport(report: Report, save: boolean): string[] {
  const folder = join(packageRoot(), 'bench', 'results', ...(save ? ['saved'] : []));
  mkdirSync(folder, { recursive: true });
  const name = reportName(report.machine);
  const json = join(folder, `${name}.json`);
  const markdown = join(folder, `${name}.md`);
  const targets = judgeTargets(report);
  writeFileSync(json, `${JSON.stringify({ ...report, targets }, undefined, 1)}\n`);
  writeFileSync(markdown, toMarkdown(report));
  for (const { verdict, target, measured } of targets) console.log(`${verdict}  ${target}: ${measured}`);
  return [json, markdown];
}

function toMarkdown(report: Report): string {
  const { machine } = report;
  const memory = `${Math.round(machine.memory / 2 ** 30)} GiB memory, last-level cache ${machine.l3 / 2 ** 20} MiB`;
  const lines = [
    `# Benchmark of ${machine.date.slice(0, 10)}, ${machine.cpu}`,
    '',
    ...(report.smoke ? ['A smoke run: few samples, figures mean little.', ''] : []),
    `- ${machine.cores} cores, ${memory}, ${machine.kernel}, Node ${machine.node}, ${machine.compiler}`,
    `- commit ${machine.commit}, ${machine.date}, load average at the start ${machine.load.toFixed(2)}`,
    '- Times are medians with their range. "Others" is what other processes used meanwhile, in % of one core.',
    '',
    '## Limits of the machine, measured first',
    '',
    ...table(
      ['threads', 'ISA', 'f32 GFLOP/s', 'bf16 GFLOP/s', 'DRAM read GB/s', 'L3', 'L2'],
      report.peaks.map(peakCells),
    ),
    '',
    '## Targets',
    '',
    ...table(
      ['', 'target', 'measured'],
      judgeTargets(report).map((t) => [t.verdict, t.target, t.measured]),
    ),
  ];
  for (const peaks of report.peaks) lines.push(...section(report, peaks));
  return `${lines.join('\n')}\n`;
}

function peakCells({ threads, isa, f32, bf16, dram, l3, l2 }: Peaks): string[] {
  const memory = [dram, l3, l2].map((peak) => `${round(peak.median)} (${round(peak.min)}–${round(peak.max)})`);
  return [String(threads), isa, round(f32.max), bf16 === undefined ? '–' : round(bf16.max), ...memory];
}

function section(report: Report, peaks: Peaks): string[] {
  const rows = report.rows.filter(({ threads }) => threads === peaks.threads);
  const lines = ['', `## ${peaks.threads} thread${peaks.threads === 1 ? '' : 's'}`];
  for (const group of new Set(rows.map((row) => row.group))) {
    const members = rows.filter((row) => row.group === group);
    lines.push('', `### ${group}`, '');
    const timed = members.filter(({ timing }) => timing !== undefined);
    if (timed.length > 0) {
      const header = ['', 'time', 'range', 'GFLOP/s', 'GB/s', 'of the limit', 'others'];
      lines.push(
        ...table(
          header,
          timed.map((row) => [row.name, ...Object.values(cellsOf(row, peaks)!)]),
        ),
        '',
      );
    }
    for (const { name, figures, error } of members) {
      const texts = Object.entries(figures ?? {}).map(([title, figure]) => `${title} ${formatFigure(figure)}`);
      if (error !== undefined) texts.push(`failed: ${error}`);
      if (texts.length > 0) lines.push(`- ${name}: ${texts.join(', ')}`);
    }
  }
  return lines;
}
