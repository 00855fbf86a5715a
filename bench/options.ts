// The command line of the harness.

import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';

/** The parts that can be run alone. */
export const SECTIONS = ['ops', 'model', 'start'] as const;
export type Section = (typeof SECTIONS)[number];

export interface Options {
  sections: Section[];
  /** Thread counts to measure, one process each. */
  threads: number[];
  /** Fewer cases and samples; under a minute in all. */
  smoke: boolean;
  /** Only cases whose `group name` contains this. */
  filter: string;
  /** Checkpoint folder of the model section. */
  model: string | undefined;
  /** Write the report where git sees it. */
  save: boolean;
  /** Milliseconds for each case. */
  budget: number;
  /** Compare with other runtimes instead. */
  peers: boolean;
  /** Do not install peers. */
  offline: boolean;
  /** Earlier report of a comparison whose other rows are kept. */
  into: string | undefined;
}

export const USAGE = `npm run bench -- [options]
  --only ops|model|start   one part only (repeatable)
  --threads N              one thread count instead of 1 and all
  --filter TEXT            only cases whose name contains TEXT
  --model DIR              checkpoint folder of the model part (default: the demonstration model and a synthetic one)
  --budget MS              time for each case (default 1000; with --peers 20000)
  --smoke                  few cases, few samples: does everything still run?
  --peers                  compare with node-llama-cpp, onnxruntime-node, PyTorch, Pillow and sharp; installs them into build-peers/
  --offline                with --peers: only those that are installed already
  --into FILE.json         with --peers: the other rows of this earlier report are kept
  --save                   write the report to bench/results/saved/, which git keeps`;

/** Reads `args`; throws an Error with a readable message. */
export function readOptions(args: string[]): Options | 'help' {
  const { values } = parseArgs({
    args,
    options: {
      only: { type: 'string', multiple: true },
      threads: { type: 'string' },
      filter: { type: 'string', default: '' },
      model: { type: 'string' },
      budget: { type: 'string' },
      smoke: { type: 'boolean', default: false },
      save: { type: 'boolean', default: false },
      peers: { type: 'boolean', default: false },
      offline: { type: 'boolean', default: false },
      into: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) return 'help';
  const sections = (values.only ?? SECTIONS).map(section);
  const all = availableParallelism();
  const threads = values.threads === undefined ? [...new Set([1, all])] : [count('threads', values.threads, all)];
  const usual = values.smoke ? 60 : values.peers ? 20_000 : 1000;
  const budget = values.budget === undefined ? usual : count('budget', values.budget, 600_000);
  const { smoke, filter, model, save, peers, offline, into } = values;
  if (into !== undefined && !peers) throw new Error('--into goes with --peers');
  return { sections, threads, smoke, filter, model, save, budget, peers, offline, into };
}

function section(name: string): Section {
  const found = SECTIONS.find((candidate) => candidate === name);
  if (found === undefined) throw new Error(`--only must be one of ${SECTIONS.join(', ')}, got '${name}'`);
  return found;
}

function count(option: string, text: string, max: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= max) return value;
  throw new Error(`--${option} must be a whole number from 1 to ${max}, got '${text}'`);
}
