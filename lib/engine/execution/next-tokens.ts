// Logits → what each sequence wants of them: one drawn token, for a beam search the best candidates, for a ranking the
// log-probabilities of given tokens. Of the last two only a few numbers per row leave the device.

import { QFormerError } from '../../errors.js';
import { ops, type Tensor } from '../../tensor/index.js';
import type { StepOutput } from '../scheduling/group.js';
import { penalize, together } from './penalties.js';
import { sampleTokens } from './sampler.js';
import type { Sequence } from '../scheduling/sequence.js';

/** A row of logits: of the token at `position`, which is the last one unless the sequence has a probe. */
export interface LogitRow {
  sequence: Sequence;
  position: number;
}

/** One output for each row. logits: [rows, vocab] f32, may be overwritten. Call it inside a scope. */
export function nextTokens(logits: Tensor, rows: readonly LogitRow[], device: string): StepOutput[] {
  const outputs: StepOutput[] = [];
  for (const { wants, run } of kinds) {
    const own = rows.flatMap(({ sequence }, row) => (wants(sequence) ? [row] : []));
    if (own.length === 0) continue;
    const part = own.length === rows.length ? logits : ops.gatherRows(logits, together([own], Int32Array, device)[0]!);
    const results = run(
      part,
      own.map((row) => rows[row]!),
      device,
    );
    own.forEach((row, i) => (outputs[row] = results[i]!));
  }
  return outputs;
}

const kinds = [
  {
    wants: ({ probe, numCandidates }: Sequence) => probe === undefined && numCandidates === 0,
    run: (logits: Tensor, rows: readonly LogitRow[], device: string) => sampleTokens(logits, sequencesOf(rows), device),
  },
  { wants: ({ probe, numCandidates }: Sequence) => probe === undefined && numCandidates > 0, run: bestCandidates },
  { wants: ({ probe }: Sequence) => probe !== undefined, run: probedLogprobs },
];

const sequencesOf = (rows: readonly LogitRow[]): Sequence[] => rows.map(({ sequence }) => sequence);

/** Log-softmax, then penalties and bans, then the best: the order that beam search has in the reference. */
function bestCandidates(logits: Tensor, rows: readonly LogitRow[], device: string): StepOutput[] {
  const sequences = sequencesOf(rows);
  const scores = ops.logSoftmax(logits);
  penalize(scores, sequences, device);
  const k = Math.min(logits.shape[1]!, Math.max(...sequences.map(({ numCandidates }) => numCandidates)));
  const best = ops.topK(scores, k);
  const [values, ids] = [best.values.toArray(), best.ids.toArray()];
  return sequences.map(({ numCandidates }, row): StepOutput => {
    const [start, end] = [row * k, row * k + Math.min(k, numCandidates)];
    // NaN ranks above everything.
    if (Number.isNaN(values[start]!)) return damaged();
    const logprobs = Array.from(values.slice(start, end)).filter((value) => value > -Infinity);
    return { candidates: { ids: Array.from(ids.slice(start, start + logprobs.length)), logprobs } };
  });
}

function probedLogprobs(logits: Tensor, rows: readonly LogitRow[], device: string): StepOutput[] {
  const vocab = logits.shape[1]!;
  const wanted = rows.map(({ sequence: { probe }, position }) => probe!.ids[position - probe!.from]!);
  const places = wanted.flatMap((ids, row) => ids.map((id) => row * vocab + id));
  const flat = ops.logSoftmax(logits).reshape([rows.length * vocab, 1]);
  const values = ops.gatherRows(flat, together([places], Int32Array, device)[0]!).toArray();
  let next = 0;
  return rows.map(({ sequence: { probe }, position }, row): StepOutput => {
    const logprobs = Array.from(values.slice(next, next + wanted[row]!.length));
    next += logprobs.length;
    if (logprobs.some((value) => Number.isNaN(value))) return damaged();
    return { logprobs: [logprobs], row: position - probe!.from };
  });
}

function damaged(): StepOutput {
  return { error: new QFormerError('FORMAT', 'the model produced NaN; are its weights damaged?') };
}
