// Single figures of a comparison, which are no race of speeds: start-up, memory, a busy neighbour, accuracy.

import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { packageRoot } from '../../lib/package-root.js';
import { summarise } from '../measure.js';
import { EMPTY_PROGRAM, qformerCommand, timeProcesses } from '../processes.js';
import { round } from '../report-rows.js';
import { accuracyFacts } from './accuracy.js';
import { middle } from './comparison.js';
import { ContestantProcess } from './contestant.js';
import { bounded, type Fact } from './fact.js';
import { commandOf, NODE_PEERS, PEERS_FOLDER, type PeerState } from './install.js';
import { makeModelFiles, modelPath, type ModelFile } from './model-files.js';
import type { Contestant, Job, Peer } from './protocol.js';

const STARTS = 15;
const NEIGHBOUR_ROUNDS = 5;
const TURN_MS = 150;
const MEMORY_ALLOWANCE = 120e6;
const PROMPT = 256;

interface FactGroup {
  title: string;
  peers: Peer[];
  files: ModelFile[];
  measure: (peers: ReadonlyMap<Peer, string | undefined>, smoke: boolean) => Promise<Fact[]> | Fact[];
}

/** What can be measured; `title` is what --filter looks at. */
export const FACT_GROUPS: readonly FactGroup[] = [
  { title: 'start', peers: ['node-llama-cpp', 'onnxruntime-node'], files: [], measure: startFacts },
  { title: 'accuracy', peers: [], files: [], measure: (_, smoke) => accuracyFacts(smoke) },
  { title: 'memory', peers: ['node-llama-cpp'], files: ['llama-1b', 'llama-1b-Q4_0.gguf'], measure: memoryFacts },
  {
    title: 'busy neighbour',
    peers: ['node-llama-cpp'],
    files: ['llama-1b', 'llama-1b-Q4_0.gguf'],
    measure: neighbourFacts,
  },
];

/** The facts of one group; a failure is a fact with its reason. */
export async function measureFacts(group: FactGroup, peers: readonly PeerState[], smoke: boolean): Promise<Fact[]> {
  const missing = new Map(peers.map((peer) => [peer.name, peer.missing]));
  try {
    await makeModelFiles(new Set(group.files));
    return await group.measure(missing, smoke);
  } catch (error) {
    const note = error instanceof Error ? error.message : String(error);
    return [{ group: group.title, name: 'failed', unit: '', note, verdict: 'not run' }];
  }
}

/** Milliseconds in fresh processes: of an import alone, measured inside, and of the whole command line. */
function startFacts(missing: ReadonlyMap<Peer, string | undefined>, smoke: boolean): Fact[] {
  const runs = smoke ? 3 : STARTS;
  const dist = (file: string) => join(packageRoot(), 'dist', file);
  const peer = (name: Peer, then: string): Fact[] => {
    if (missing.get(name) !== undefined) return [];
    const file = createRequire(join(NODE_PEERS, 'package.json')).resolve(name);
    return [{ group: 'start', name: `import ${name}, library ready`, ...importTime(runs, file, then) }];
  };
  const tensor = importTime(runs, dist('tensor.js'), 'api.devices();');
  return [
    bounded({ group: 'start', name: 'import qformer/tensor, addon ready', ...tensor }, '≤', 20),
    { group: 'start', name: 'import qformer', ...importTime(runs, dist('index.js'), '') },
    ...peer('onnxruntime-node', ''),
    ...peer('node-llama-cpp', `await api.getLlama({ gpu: false, build: 'never', logLevel: 'error' });`),
    ...commandFacts(runs),
  ];
}

type Measured = Pick<Fact, 'value' | 'unit' | 'note'>;

// A file and not `node -e`: node-llama-cpp starts a process of its own with the flags of this one.
function importTime(runs: number, library: string, then: string): Measured {
  const file = join(PEERS_FOLDER, 'start.mjs');
  writeFileSync(
    file,
    `const begin = performance.now();
    const api = await import(${JSON.stringify(pathToFileURL(library).href)}); ${then}
    process.stdout.write(String(performance.now() - begin)); process.exit();`,
  );
  const once = () => {
    const { stdout, stderr, status } = spawnSync(process.execPath, [file], { encoding: 'utf8' });
    if (status !== 0) throw new Error(/^\w*Error.*/m.exec(stderr)?.[0] ?? `exit status ${status}`);
    return Number(stdout);
  };
  // The first run fills the page cache.
  return milliseconds(Array.from({ length: runs + 1 }, once).slice(1));
}

/** `qformer --version` and a program that does nothing, in turn, and how much longer the first took. */
function commandFacts(runs: number): Fact[] {
  const [version, empty] = timeProcesses([[qformerCommand(), '--version'], [EMPTY_PROGRAM]], runs);
  const error = version!.error ?? empty!.error;
  if (error !== undefined) throw new Error(error);
  const more = summarise(version!.samples.map((ms, i) => ms - empty!.samples[i]!));
  const middleHalf = `middle half ${round(more.p25)}–${round(more.p75)}`;
  const command = milliseconds(version!.samples);
  return [
    bounded({ group: 'start', name: 'qformer --version, whole process', ...command }, '≤', 120),
    { group: 'start', name: 'node with an empty program, whole process', ...milliseconds(empty!.samples) },
    {
      group: 'start',
      name: 'qformer --version over the empty program',
      value: more.median,
      unit: 'ms',
      note: middleHalf,
    },
  ];
}

function milliseconds(samples: number[]): Measured {
  const { median, min, max } = summarise(samples);
  return { value: median, unit: 'ms', note: `${round(min)}–${round(max)}` };
}

/** Peak resident memory of int4 weights after a prompt and an answer, against what has to be there. */
async function memoryFacts(missing: ReadonlyMap<Peer, string | undefined>): Promise<Fact[]> {
  const threads = availableParallelism();
  const job = { kind: 'decode', prompt: PROMPT, tokens: 32, threads } as const;
  const facts: Fact[] = [];
  await withContestant('ours', threads, async (ours) => {
    const { bytes } = await ours.ask({ prepare: { ...job, weights: 'int4', model: modelPath('llama-1b') } });
    const { weights, kvCache } = bytes!;
    const allowed = Math.round((1.15 * weights + kvCache + MEMORY_ALLOWANCE) / 1e6);
    const megabytes = (value: number) => `${Math.round(value / 1e6)} MB`;
    const note = `bound: 1.15 × weights ${megabytes(weights)} + KV cache ${megabytes(kvCache)} + 120 MB`;
    const value = peakOf(ours);
    facts.push(bounded({ group: 'memory', name: 'peak RSS, LLaMA 1.1B int4', value, unit: 'MB', note }, '≤', allowed));
  });
  if (missing.get('node-llama-cpp') !== undefined) return facts;
  await withContestant('node-llama-cpp', threads, async (peer) => {
    await peer.ask({ prepare: { ...job, weights: 'Q4_0', model: modelPath('llama-1b-Q4_0.gguf') } });
    facts.push({ group: 'memory', name: 'peak RSS, node-llama-cpp Q4_0', value: peakOf(peer), unit: 'MB' });
  });
  return facts;
}

function peakOf(contestant: ContestantProcess): number | undefined {
  const bytes = contestant.peakMemory();
  return bytes === undefined ? undefined : bytes / 1e6;
}

/** Decoding with all threads while a loop keeps one of the CPUs busy, over decoding with one thread undisturbed. */
async function neighbourFacts(missing: ReadonlyMap<Peer, string | undefined>, smoke: boolean): Promise<Fact[]> {
  const threads = availableParallelism();
  if (threads < 2) return [];
  const contestants: [Contestant, Job & { kind: 'decode' }][] = [
    ['ours', { kind: 'decode', prompt: 16, tokens: 16, threads, weights: 'int4', model: modelPath('llama-1b') }],
  ];
  if (missing.get('node-llama-cpp') === undefined) {
    const model = modelPath('llama-1b-Q4_0.gguf');
    contestants.push(['node-llama-cpp', { ...contestants[0]![1], weights: 'Q4_0', model }]);
  }
  const facts: Fact[] = [];
  for (const [who, job] of contestants) {
    const { ratio, alone, disturbed } = await disturb(who, job, smoke ? 1 : NEIGHBOUR_ROUNDS);
    const rate = (ms: number) => round((1000 * job.tokens) / ms);
    const note = `${rate(disturbed)} tokens/s, one thread alone ${rate(alone)}`;
    const name = `${who === 'ours' ? 'int4' : `${who} ${job.weights}`} decode, ${threads} threads and a busy loop on one CPU`;
    const fact = { group: 'busy neighbour', name, threads, value: ratio, unit: '× one thread', note };
    facts.push(who === 'ours' ? bounded(fact, '≥', 0.9) : fact);
  }
  return facts;
}

async function disturb(
  who: Contestant,
  job: Job,
  rounds: number,
): Promise<Record<'ratio' | 'alone' | 'disturbed', number>> {
  // pinned() gives single threads the last CPU, so the loop takes the first
  const loop = new ContestantProcess(
    { command: 'taskset', args: ['-c', '0', process.execPath, '-e', 'for(;;);'] },
    job.threads,
  );
  loop.signal('SIGSTOP');
  try {
    return await withContestant(who, 1, (single) =>
      withContestant(who, job.threads, async (many) => {
        const [alone, disturbed]: [number[], number[]] = [[], []];
        await single.ask({ prepare: { ...job, threads: 1 } });
        await many.ask({ prepare: job });
        for (let i = 0; i < rounds; i++) {
          alone.push(middle((await single.ask({ turn: TURN_MS })).ms!));
          loop.signal('SIGCONT');
          disturbed.push(middle((await many.ask({ turn: TURN_MS })).ms!));
          loop.signal('SIGSTOP');
        }
        const ratios = alone.map((ms, i) => ms / disturbed[i]!);
        return { ratio: middle(ratios), alone: middle(alone), disturbed: middle(disturbed) };
      }),
    );
  } finally {
    await loop.end();
  }
}

async function withContestant<T>(
  who: Contestant,
  threads: number,
  use: (process: ContestantProcess) => Promise<T>,
): Promise<T> {
  const contestant = new ContestantProcess(commandOf(who), threads);
  try {
    return await use(contestant);
  } finally {
    await contestant.end();
  }
}
