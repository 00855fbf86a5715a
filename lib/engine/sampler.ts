// Logits → one token per sequence: penalties and bans, temperature / top-k / top-p / min-p, draw; log-probabilities of the
// raw logits where asked for. Each row depends on its own sequence only (counter-based random numbers keyed by the
// request's seed and its number of generated tokens), so neither the batch nor a preemption changes a draw.

import { QFormerError } from '../errors.js';
import { Tensor, ops } from '../tensor/index.js';
import type { StepOutput } from './engine.js';
import type { TokenLogprob } from './protocol.js';
import type { Sequence } from './sequence.js';

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

function i32(values: ArrayLike<number>, device: string, shape: number[] = [values.length]): Tensor {
  return Tensor.fromArray(Int32Array.from(values), shape, { device });
}

function f32(values: readonly number[], device: string): Tensor {
  return Tensor.fromArray(Float32Array.from(values), [values.length], { device });
}

function penalize(logits: Tensor, sequences: readonly Sequence[], device: string): void {
  const history = new Ragged();
  const banned = new Ragged();
  for (const { rules, params } of sequences) {
    history.push(params.repetitionPenalty === 1 ? [] : rules.history);
    banned.push(rules.banned());
  }
  if (history.values.length + banned.values.length === 0) return;
  const penalties = sequences.map(({ params }) => params.repetitionPenalty);
  ops.penalizeLogits(logits, {
    history: i32(history.values, device),
    cuHistory: i32(history.offsets, device),
    banned: i32(banned.values, device),
    cuBanned: i32(banned.offsets, device),
    repetitionPenalty: f32(penalties, device),
  });
}

/** Lists of different length behind each other. */
class Ragged {
  readonly values: number[] = [];
  readonly offsets: number[] = [0];

  push(list: readonly number[]): void {
    for (const value of list) this.values.push(value);
    this.offsets.push(this.values.length);
  }
}

function draw(logits: Tensor, sequences: readonly Sequence[], device: string): Int32Array {
  const all = sequences.map(({ params }) => params);
  const temperature = f32(
    all.map((params) => params.temperature),
    device,
  );
  const scores = all.every((params) => params.temperature === 0)
    ? logits
    : ops.warpLogits(logits, {
        temperature,
        topK: i32(
          all.map((params) => params.topK),
          device,
        ),
        topP: f32(
          all.map((params) => params.topP),
          device,
        ),
        minP: f32(
          all.map((params) => params.minP),
          device,
        ),
      });
  const words = all.flatMap(({ seed }) => [seed | 0, Math.floor(seed / 2 ** 32) | 0]);
  const seed = i32(words, device, [all.length, 2]);
  const step = i32(
    sequences.map((sequence) => sequence.numGenerated),
    device,
  );
  return ops.sample(scores, { temperature, seed, step }).toArray() as Int32Array;
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
  return { values: ops.logSoftmax(ops.gatherRows(logits, i32(rows, device))), rows };
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
  const chosen = ops.gatherRows(values.reshape([rows.length * vocab, 1]), i32(places, device)).toArray();
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
