// Logits → what each sequence wants of them: one drawn token, or for a beam search the best candidates. Of these only a few
// numbers per beam leave the device.

import { QFormerError } from '../errors.js';
import type { Tensor } from '../tensor/index.js';
import { ops } from '../tensor/index.js';
import type { StepOutput } from './group.js';
import { penalize, together } from './penalties.js';
import { sampleTokens } from './sampler.js';
import type { Sequence } from './sequence.js';

/** One output for each row. logits: [b, vocab] f32, may be overwritten. Call it inside a scope. */
export function nextTokens(logits: Tensor, sequences: readonly Sequence[], device: string): StepOutput[] {
  const kinds = [
    { rows: rowsWhere(sequences, ({ numCandidates }) => numCandidates === 0), run: sampleTokens },
    { rows: rowsWhere(sequences, ({ numCandidates }) => numCandidates > 0), run: bestCandidates },
  ];
  const outputs: StepOutput[] = [];
  for (const { rows, run } of kinds) {
    if (rows.length === 0) continue;
    const own =
      rows.length === sequences.length ? logits : ops.gatherRows(logits, together([rows], Int32Array, device)[0]!);
    const results = run(
      own,
      rows.map((row) => sequences[row]!),
      device,
    );
    rows.forEach((row, i) => (outputs[row] = results[i]!));
  }
  return outputs;
}

function rowsWhere(sequences: readonly Sequence[], isOne: (sequence: Sequence) => boolean): number[] {
  return sequences.flatMap((sequence, row) => (isOne(sequence) ? [row] : []));
}

/** Log-softmax, then penalties and bans, then the best: the order that beam search has in the reference. */
function bestCandidates(logits: Tensor, sequences: readonly Sequence[], device: string): StepOutput[] {
  const scores = ops.logSoftmax(logits);
  penalize(scores, sequences, device);
  const k = Math.min(logits.shape[1]!, Math.max(...sequences.map(({ numCandidates }) => numCandidates)));
  const best = ops.topK(scores, k);
  const [values, ids] = [best.values.toArray(), best.ids.toArray()];
  return sequences.map(({ numCandidates }, row): StepOutput => {
    const [start, end] = [row * k, row * k + Math.min(k, numCandidates)];
    // NaN ranks above everything.
    if (Number.isNaN(values[start]!)) {
      return { error: new QFormerError('FORMAT', 'the model produced NaN; are its weights damaged?') };
    }
    const logprobs = Array.from(values.slice(start, end)).filter((value) => value > -Infinity);
    return { candidates: { ids: Array.from(ids.slice(start, start + logprobs.length)), logprobs } };
  });
}
