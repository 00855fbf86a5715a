// `npm run bench`: measures the machine's limits, then ops, models and start-up, and writes JSON and Markdown.
//
// Every thread count runs in a process of its own, confined to that many CPUs where `taskset` exists, so that neither the
// thread pool nor Node's own threads use more than the row says. Limits are measured by the same rule right before it.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describeMachine, measurePeaks, pinned } from './machine.js';
import { readOptions, USAGE, type Options } from './options.js';
import { chosenModels, runModel } from './model/run.js';
import { runOps } from './ops/run.js';
import { runPeers } from './peers/run.js';
import { writeReport, type Report } from './report.js';
import { describeRow } from './report-rows.js';
import type { Peaks, Row } from './row.js';
import { runStart } from './start.js';

// Set in the processes that measure: threads and part, e.g. '2 ops'.
const CHILD = 'QFORMER_BENCH_CHILD';

async function main(): Promise<void> {
  const options = readOptions(process.argv.slice(2));
  const task = process.env[CHILD];
  if (options === 'help') console.log(USAGE);
  else if (options.peers) await runPeers(options);
  else if (task === undefined) await parent(options);
  else await child(options, task);
}

async function parent(options: Options): Promise<void> {
  const report: Report = { machine: describeMachine(), smoke: options.smoke, peaks: [], rows: [] };
  const { cpu, cores, load } = report.machine;
  console.log(`${cpu}, ${cores} cores, load ${load.toFixed(2)}; threads ${options.threads.join(' and ')}`);
  for (const threads of options.threads) {
    const peaks = measurePeaks(threads, options.smoke);
    report.peaks.push(peaks);
    console.log(describePeaks(peaks));
    for (const part of parts(options)) {
      await collect(threads, part, (row) => {
        report.rows.push(row);
        console.log(describeRow(row, peaks));
      });
    }
  }
  for (const file of writeReport(report, options.save)) console.log(`written: ${file}`);
  if (report.rows.every((row) => row.error !== undefined)) throw new Error('no benchmark could be run');
}

function describePeaks({ threads, isa, f32, bf16, dram, l3, l2 }: Peaks): string {
  const dot = bf16 === undefined ? '' : `, bf16 ${bf16.max} GFLOP/s`;
  return (
    `\n${threads} thread(s), ${isa}: f32 ${f32.max} GFLOP/s${dot}, ` +
    `read DRAM ${dram.median} GB/s (${dram.min}–${dram.max}), L3 ${l3.median}, L2 ${l2.median}`
  );
}

/** What gets a process of its own: each model does, because peak memory is a process's. */
function parts(options: Options): string[] {
  return options.sections.flatMap((name) => (name === 'model' ? chosenModels(options) : [name]));
}

// Runs a part with `threads` threads in a process of its own, which sends each row when it has it.
function collect(threads: number, part: string, onRow: (row: Row) => void): Promise<void> {
  const script = fileURLToPath(import.meta.url);
  const { command, args } = pinned(threads, process.execPath, [script, ...process.argv.slice(2)]);
  const env = { ...process.env, [CHILD]: `${threads} ${part}` };
  const runner = spawn(command, args, { env, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  runner.on('message', (row) => onRow(row as Row));
  return new Promise((resolve, reject) => {
    runner.on('error', reject);
    runner.on('exit', (code, signal) => {
      if (code === 0) resolve();
      else reject(new Error(`${part} with ${threads} thread(s) ended with ${signal ?? `code ${code}`}`));
    });
  });
}

async function child(options: Options, task: string): Promise<void> {
  const [, count = '1', part = ''] = /^(\d+) (.*)$/.exec(task) ?? [];
  const threads = Number(count);
  const send = (row: Row): void => void process.send?.(row);
  if (part === 'ops') runOps(options, threads, send);
  else if (part === 'start') runStart(options, threads, send);
  else await runModel(part, options, threads, send);
  process.disconnect?.();
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
