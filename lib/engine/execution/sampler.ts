// Logits → one token per sequence: penalties and bans, temperature / top-k / top-p / min-p, draw; log-probabilities of the
// raw logits where asked for. Each row depends on its own sequence only (counter-based random numbers keyed by the
// request's seed and its number of generated tokens), so neither the batch nor a preemption changes a draw.

import { QFormerError } from '../../errors.js';
import type { Tensor } from '../../tensor/index.js';
import { ops } from '../../tensor/index.js';
import type { StepOutput } from '../scheduling/group.js';
import { penalize, together } from './penalties.js';
import type { TokenLogprob } from '../protocol.js';
import type { Sequence } from '../scheduling/sequence.js';

/** Samples one token for each row. logits: [b, vocab] f32, overwritten. Call it inside a scope. */
export function sampleTokens(logits: Tensor, sequences: readonly Sequence[], device: string): StepOutput[] {
  const vocab = logits.shape[1]!;
  const logprobs = rawLogprobs(logits, sequences, device);
  penalize(logits, sequences, device);
  const ids = draw(logits, sequences, device);
  const entries = logprobs === undefined ? [] : readLogprobs(logprobs, ids, vocab, sequences, device);
  return sequences.map((_, row): StepOutput => {
    const tokenId = ids[row]!;
    if (tokenId < 0) {
      return {
        error: new QFormerError('FORMAT', 'the model produced NaN or no finite score; are its weights damaged?'),
      };
    }
    const logprob = entries[row];
    return logprob === undefined ? { tokenId } : { tokenId, logprob };
  });
}

function draw(logits: Tensor, sequences: readonly Sequence[], device: string): Int32Array {
  const all = sequences.map(({ params }) => params);
  const seeds = all.flatMap(({ seed }) => [seed | 0, Math.floor(seed / 2 ** 32) | 0]);
  const steps = sequences.map((sequence) => sequence.numGenerated);
  const isGreedy = all.every((params) => params.temperature === 0);
  const ints = isGreedy ? [seeds, steps] : [seeds, steps, all.map((params) => params.topK)];
  const [seed, step, topK] = together(ints, Int32Array, device) as [Tensor, Tensor, Tensor];
  const temperatures = all.map((params) => params.temperature);
  const floats = isGreedy
    ? [temperatures]
    : [temperatures, all.map((params) => params.topP), all.map((params) => params.minP)];
  const [temperature, topP, minP] = together(floats, Float32Array, device) as [Tensor, Tensor, Tensor];
  const scores = isGreedy ? logits : ops.warpLogits(logits, { temperature, topK, topP, minP });
  return ops.sample(scores, { temperature, seed: seed.reshape([all.length, 2]), step }).toArray() as Int32Array;
}

interface Logprobs {
  /** [rows, vocab] */
  values: Tensor;
  /** Batch row of each. */
  rows: number[];
}

function rawLogprobs(logits: Tensor, sequences: readonly Sequence[], device: string): Logprobs | undefined {
  const rows = sequences.flatMap(({ params }, row) => (params.logprobs >= 0 ? [row] : []));
  if (rows.length === 0) return undefined;
  return { values: ops.logSoftmax(ops.gatherRows(logits, together([rows], Int32Array, device)[0]!)), rows };
}

/** Sparse: one entry per batch row that asked. */
function readLogprobs(
  { values, rows }: Logprobs,
  ids: Int32Array,
  vocab: number,
  sequences: readonly Sequence[],
  device: string,
): TokenLogprob[] {
  const places = rows.map((row, i) => i * vocab + Math.max(0, ids[row]!));
  const chosen = ops
    .gatherRows(values.reshape([rows.length * vocab, 1]), together([places], Int32Array, device)[0]!)
    .toArray();
  const k = Math.min(vocab, Math.max(...rows.map((row) => sequences[row]!.params.logprobs)));
  const best = k === 0 ? undefined : readTopK(values, k);
  const entries: TokenLogprob[] = [];
  rows.forEach((row, i) => {
    const count = Math.min(k, sequences[row]!.params.logprobs);
    entries[row] = { tokenId: ids[row]!, logprob: chosen[i]! };
    if (count > 0) entries[row].top = best!.slice(i * k, i * k + count);
  });
  return entries;
}

function readTopK(values: Tensor, k: number): { tokenId: number; logprob: number }[] {
  const top = ops.topK(values, k);
  const logprobs = top.values.toArray();
  return Array.from(top.ids.toArray(), (tokenId, i) => ({ tokenId, logprob: logprobs[i]! }));
}
