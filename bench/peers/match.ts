// Plays one comparison: all contestants are loaded and warm, and take turns (ours, A, B, the machine's limit, ours, A, B, …) until
// the time is up, so that a slow moment of the machine meets neighbours alike. Only one of them runs at a time.

import { performance } from 'node:perf_hooks';
import { measureLimit } from '../machine.js';
import { OtherLoad, summarise } from '../measure.js';
import type { Peaks } from '../row.js';
import {
  bindingLimit,
  judge,
  middle,
  ratios,
  type Comparison,
  type ComparisonRow,
  type RivalFigures,
  type Task,
} from './comparison.js';
import { ContestantProcess } from './contestant.js';
import { commandOf, type PeerState } from './install.js';
import type { Contestant, Job } from './protocol.js';

const MIN_ROUNDS = 5;
const MAX_ROUNDS = 25;
/** A contestant that collapses (threads that spin on a busy machine) may stretch a row to so many times its budget. */
const PATIENCE = 3;
/** One whose turn takes longer than the row's budget and so many times ours has that turn alone, and its time is not counted. */
const TOO_SLOW = 5;
/** A turn repeats short runs for this long, ms. */
const TURN_MS = 150;

/** What a match may take. */
export interface Rules {
  threads: number;
  peaks: Peaks;
  /** ms for the turns of a comparison; loading comes on top */
  budget: number;
  minRounds?: number;
}

interface Side {
  process: ContestantProcess;
  part: number;
  times: number[];
  sitsOut?: boolean;
  note?: string;
  error?: string;
}

/** Plays `comparison` against the peers that are there. Never rejects: what fails is said in the row. */
export async function play(comparison: Comparison, peers: readonly PeerState[], rules: Rules): Promise<ComparisonRow> {
  const { threads, peaks } = rules;
  const { group, name, unit, amount, rivals } = comparison;
  const ours = await enter('ours', comparison.ours, threads);
  const missing = (rival: { peer: string }) => {
    const state = peers.find((candidate) => candidate.name === rival.peer);
    return state === undefined ? 'not asked for' : state.missing && `not installed: ${state.missing}`;
  };
  const sides = new Map<RivalFigures, Side>();
  const figures: RivalFigures[] = [];
  for (const rival of rivals) {
    const entry: RivalFigures = { peer: rival.peer, weights: rival.weights, error: missing(rival) };
    figures.push(entry);
    if (entry.error === undefined) sides.set(entry, await enter(rival.peer, rival.task, threads, rival.part));
  }
  const limit = bindingLimit(comparison, peaks);
  const limits: number[] = [];
  try {
    const load = new OtherLoad([ours, ...sides.values()].map(({ process }) => process.pid));
    await takeTurns([ours, ...sides.values()], comparison, rules, () => {
      if (limit !== undefined) limits.push(measureLimit(limit, threads)!.median);
    });
    const others = load.cores();
    const summary = ({ times }: Side) => (times.length === 0 ? undefined : summarise(times, others));
    const row: ComparisonRow = {
      group,
      name,
      threads,
      unit,
      amount,
      ours: summary(ours),
      rivals: figures,
      judgements: [],
    };
    Object.assign(row, { note: ours.note, error: ours.error });
    for (const [entry, side] of sides) {
      Object.assign(entry, { timing: summary(side), note: side.note, error: side.error });
      if (ours.times.length > 0 && side.times.length > 0) entry.ratio = ratios(side.times, ours.times);
    }
    if (limit !== undefined && ours.times.length > 0) row.limit = shareOf(limit, limits, comparison, ours.times);
    row.judgements = judge(comparison.bars, row);
    return row;
  } finally {
    for (const { process } of [ours, ...sides.values()]) await process.end();
  }
}

async function enter(who: Contestant, task: Task, threads: number, part = 1): Promise<Side> {
  const side: Side = { process: new ContestantProcess(commandOf(who), threads), part, times: [] };
  try {
    side.note = (await side.process.ask({ prepare: { ...task, threads } as Job })).note;
  } catch (error) {
    side.error = (error as Error).message;
  }
  return side;
}

async function takeTurns(sides: Side[], { effort = 1 }: Comparison, rules: Rules, between: () => void): Promise<void> {
  const minRounds = rules.minRounds ?? MIN_ROUNDS;
  const budget = rules.budget * effort;
  let start = performance.now();
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const elapsed = performance.now() - start;
    if (round > 0 && elapsed > budget * (round < minRounds ? PATIENCE : 1)) break;
    for (const side of sides) {
      if (side.error !== undefined || side.sitsOut) continue;
      const before = performance.now();
      try {
        side.times.push(middle((await side.process.ask({ turn: TURN_MS })).ms!) / side.part);
      } catch (error) {
        side.error = (error as Error).message;
      }
      const turn = performance.now() - before;
      side.sitsOut = turn > budget && turn > TOO_SLOW * (sides[0]!.times[0] ?? Infinity);
      if (side.sitsOut) start += turn;
    }
    between();
  }
}

function shareOf(
  limit: 'dram' | 'f32' | 'bf16',
  rates: readonly number[],
  { flops, bytes }: Comparison,
  times: readonly number[],
): ComparisonRow['limit'] {
  const work = (limit === 'dram' ? bytes! : flops!) / 1e6;
  const name = limit === 'dram' ? 'DRAM read' : `${limit} peak`;
  const share = ratios(
    rates.map((rate) => work / rate),
    times,
  );
  return { name, rate: summarise(rates).median, unit: limit === 'dram' ? 'GB/s' : 'GFLOP/s', share };
}
