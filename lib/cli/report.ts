// `qformer doctor` and `qformer info`: reports for people, or the same as JSON.

import { basename } from 'node:path';
import { doctor } from '../doctor.js';
import { estimateMemory, inspect } from '../inspect.js';
import { demoModel } from '../package-files.js';
import { loadOptions, type InfoFlags } from './flags.js';
import { bytes } from './output.js';

/** Prints what the machine offers. Exit code 1 when the native code cannot be used at all. */
export async function printDoctor(flags: { json?: boolean }): Promise<void> {
  const report = await doctor();
  if (report.native.error !== undefined) process.exitCode = 1;
  if (flags.json) return void process.stdout.write(`${JSON.stringify(report)}\n`);
  const { native } = report;
  const rows: [string, string][] = [
    ['qformer', report.version],
    ['platform', `${report.platform}-${report.arch}`],
    ['node', `${report.node} (Node-API ${report.napi})`],
    ['processor', `${report.cpu.model}, ${report.cpu.logicalCores} logical cores`],
    ['memory', `${bytes(report.memory.total)}, ${bytes(report.memory.free)} free`],
    ['native code', native.error ?? 'loaded'],
    ...native.devices.map((device): [string, string] => [`device ${device.name}`, describeDevice(device)]),
    ...report.unused.map(({ device, reason }): [string, string] => [`no ${device}`, reason]),
  ];
  printRows(rows);
}

function describeDevice(device: { device?: string; level?: string; threads?: number; memory?: number }): string {
  const { level, threads, memory } = device;
  const parts = [
    level,
    threads ? `${threads} thread${threads === 1 ? '' : 's'}` : undefined,
    memory ? bytes(memory) : undefined,
  ];
  return parts.filter((part) => part !== undefined && part !== '').join(', ');
}

/** Prints what a checkpoint folder holds. */
export function printInfo(dir: string = demoModel(), flags: InfoFlags): void {
  const { languageModel, dtype, quantize, kvCacheTokens } = loadOptions(flags);
  const info = inspect(dir, { languageModel });
  const memory = estimateMemory(dir, { languageModel, dtype, quantize, kvCacheTokens, adapters: flags.adapter });
  if (flags.json) return void process.stdout.write(`${JSON.stringify({ ...info, memory })}\n`);
  printRows([
    ['folder', info.dir],
    ['model', `${info.modelType} (language model: ${info.languageModel})`],
    ['files', info.files.map((file) => basename(file)).join(', ')],
  ]);
  process.stdout.write('\n');
  const rows = [
    ...info.parts,
    { part: 'total', tensors: info.tensors, parameters: info.parameters, bytes: info.bytes },
  ];
  printTable(
    ['part', 'tensors', 'parameters', 'bytes'],
    rows.map((row) => [row.part, String(row.tensors), row.parameters.toLocaleString('en-US'), bytes(row.bytes)]),
  );
  process.stdout.write('\n');
  printRows(Object.entries(info.bytesByDtype).map(([dtype, count]) => [`stored as ${dtype}`, bytes(count)]));
  process.stdout.write('\n');
  printRows(describeMemory(info.parameters, memory));
}

function describeMemory(parameters: number, memory: ReturnType<typeof estimateMemory>): [string, string][] {
  const { mapped, copied, adapters, kvPerToken, kvTokens, kv, context, caches, required, peak, available } = memory;
  const generation: [string, string][] = [
    ['keys and values', `${bytes(kvPerToken)} a token, ${bytes(kv)} for ${kvTokens} tokens (context: ${context})`],
  ];
  return [
    ['all weights in f32', bytes(4 * parameters)],
    ['… in f16 or bf16', bytes(2 * parameters)],
    ['weights in memory', `${bytes(mapped)} used in place in the files, ${bytes(copied)} copied`],
    ...(adapters > 0 ? [['adapters', bytes(adapters)] satisfies [string, string]] : []),
    ...(kvPerToken > 0 ? generation : []),
    ['caches when full', bytes(caches)],
    ['needed at least', bytes(required)],
    ['all pools full', bytes(peak)],
    ['available here', bytes(available)],
  ];
}

function printRows(rows: [string, string][]): void {
  const width = Math.max(...rows.map(([name]) => name.length));
  for (const [name, value] of rows) process.stdout.write(`${name.padEnd(width)}  ${value}\n`);
}

function printTable(header: string[], rows: string[][]): void {
  const widths = header.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]!.length)));
  const line = (cells: string[]) =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ');
  process.stdout.write(`${[header, ...rows].map(line).join('\n')}\n`);
}
