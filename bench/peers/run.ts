// `npm run bench -- --peers`: installs the peers, makes the models, measures the machine's limits, plays every comparison with each
// thread count, and writes the report. Rows can be chosen by --filter and added to an earlier report by --into.

import { describeMachine, measurePeaks } from '../machine.js';
import type { Options } from '../options.js';
import { round } from '../report-rows.js';
import { inUnit, type ComparisonRow } from './comparison.js';
import { comparisons } from './comparisons.js';
import type { Fact } from './fact.js';
import { FACT_GROUPS, measureFacts } from './facts.js';
import { installPeers } from './install.js';
import { play } from './match.js';
import { forgetPages, makeModelFiles } from './model-files.js';
import { mergeReport, writePeerReport, type PeerReport } from './report.js';

export async function runPeers(options: Options): Promise<void> {
  const { smoke, filter, threads: counts } = options;
  const chosen = comparisons(smoke).filter(({ group, name }) => `${group} ${name}`.includes(filter));
  const report: PeerReport = { machine: describeMachine(), smoke, peers: [], peaks: [], rows: [], facts: [] };
  const factGroups = FACT_GROUPS.filter(({ title }) => title.includes(filter));
  const opponents = chosen.flatMap(({ rivals }) => rivals.map(({ peer }) => peer));
  const wanted = new Set([...opponents, ...factGroups.flatMap(({ peers }) => peers)]);
  report.peers = installPeers(wanted, options.offline);
  for (const { name, version, missing } of report.peers) console.log(`${name}: ${version ?? `MISSING, ${missing}`}`);
  const files = new Set(chosen.flatMap(({ files }) => files));
  await makeModelFiles(files);
  forgetPages(files);
  for (const threads of counts) {
    const peaks = measurePeaks(threads, smoke);
    report.peaks.push(peaks);
    for (const comparison of chosen) {
      const rules = { threads, peaks, budget: options.budget, ...(smoke && { minRounds: 1 }) };
      const row = await play(comparison, report.peers, rules);
      report.rows.push(row);
      console.log(describe(row));
    }
  }
  for (const group of factGroups) {
    const facts = await measureFacts(group, report.peers, smoke);
    report.facts.push(...facts);
    facts.forEach((fact) => console.log(describeFact(fact)));
  }
  if (options.into !== undefined) mergeReport(report, options.into);
  for (const file of writePeerReport(report, options.save)) console.log(`written: ${file}`);
  const measured = [...report.rows.map(({ ours }) => ours), ...report.facts.map(({ value }) => value)];
  if (measured.every((figure) => figure === undefined)) throw new Error('no comparison could be run');
}

function describe(row: ComparisonRow): string {
  const { group, name, threads, unit, ours, rivals, limit, judgements, error } = row;
  const figure = (ms: number) => `${round(inUnit(row, ms))} ${unit}`;
  const own = ours === undefined ? `FAILED: ${error}` : figure(ours.median);
  const share = limit === undefined ? '' : `, ${Math.round(100 * limit.share.median)} % of ${limit.name}`;
  const against = rivals.map(({ peer, weights, timing, ratio, error: reason, note }) => {
    const result =
      ratio === undefined ? (reason ?? 'not run') : `${figure(timing!.median)}, ratio ${round(ratio.median)}`;
    return `  ${peer} ${weights}${note ? ` (${note})` : ''}: ${result}`;
  });
  const bars = judgements.map(({ bar, measured, verdict }) => `  ${verdict}: ${bar}, ${measured}`);
  return [`${threads} thread(s), ${group}, ${name}: ${own}${share}`, ...against, ...bars].join('\n');
}

function describeFact({ group, name, value, unit, note, bar, verdict }: Fact): string {
  const figure = value === undefined ? 'not run' : `${round(value)} ${unit}`;
  return `${group}, ${name}: ${[figure, note, bar && `${verdict}: ${bar}`].filter(Boolean).join(', ')}`;
}
