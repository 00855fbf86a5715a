// From logits to ids against the logits processors of transformers (test/fixtures/sampling), and the drawing itself.

import { describe, expect, it } from 'vitest';
import { Tensor, ops, scope } from '../lib/tensor/index.js';
import { expectDevices, isChecked, testDevices } from './support/devices.js';
import { Goldens, expectClose, expectNoLeaks, readJson } from './support/fixtures.js';

interface SamplingCase {
  prefix: string;
  params: Record<string, number> & { bad_words_ids?: number[][] };
  eos_token_id: number;
  n_tokens: number;
  n_generated: number;
  num_beams: number;
  input_is_log_softmax: boolean;
}

const { cases } = readJson<{ cases: SamplingCase[] }>('sampling', 'expected.json');
const goldens = new Goldens('sampling', 'expected.safetensors');

interface Filters {
  topK?: number;
  topP?: number;
  minP?: number;
}

/** What the engine computes per step: the ids that must not come next. Written plainly here as the expectation. */
function bannedIds(c: SamplingCase, ids: number[]): number[] {
  const banned = new Set<number>();
  const n = c.params.no_repeat_ngram_size;
  if (n !== undefined) {
    for (let i = 0; i + n <= ids.length; i++) {
      const prefix = ids.slice(i, i + n - 1);
      if (prefix.every((id, j) => id === ids[ids.length - n + 1 + j])) banned.add(ids[i + n - 1]!);
    }
  }
  for (const word of c.params.bad_words_ids ?? []) {
    if (word.length === 1 && word[0] === c.eos_token_id) continue;
    const head = word.slice(0, -1);
    if (head.length <= ids.length && head.every((id, j) => id === ids[ids.length - head.length + j]))
      banned.add(word.at(-1)!);
  }
  const tooShort = c.n_generated < (c.params.min_new_tokens ?? 0) || c.n_tokens < (c.params.min_length ?? 0);
  if (tooShort) banned.add(c.eos_token_id);
  return [...banned];
}

expectDevices();

describe.each(testDevices)('on %s', (device) => {
  expectNoLeaks();

  const f32 = (values: ArrayLike<number>, shape = [values.length]): Tensor =>
    Tensor.fromArray(Float32Array.from(values), shape, { device });
  const i32 = (values: ArrayLike<number>, shape = [values.length]): Tensor =>
    Tensor.fromArray(Int32Array.from(values), shape, { device });

  describe('the logits processors', () => {
    it.each(cases)('$prefix keep and drop what the reference does', (c) =>
      scope(() => {
        const ids = goldens.ids(`${c.prefix}input_ids`);
        const banned = bannedIds(c, ids);
        const { shape, data } = goldens.get(`${c.prefix}logits`);
        const raw = Tensor.fromArray(Float32Array.from(data), [1, shape[0]!], { device });
        const logits = c.input_is_log_softmax ? ops.logSoftmax(raw) : raw;
        ops.penalizeLogits(logits, {
          history: i32(ids),
          cuHistory: i32([0, ids.length]),
          banned: i32(banned),
          cuBanned: i32([0, banned.length]),
          repetitionPenalty: f32([c.params.repetition_penalty ?? 1]),
        });
        const scores = ops.warpLogits(logits, {
          temperature: f32([c.params.temperature ?? 1]),
          topK: i32([c.params.top_k ?? 0]),
          topP: f32([c.params.top_p ?? 1]),
          minP: f32([c.params.min_p ?? 0]),
          // with beams, transformers keeps one more than there are end-of-sequence tokens
          minTokensToKeep: c.num_beams > 1 ? 2 : 1,
        });
        const actual = scores.toFloat32();
        const expected = goldens.floats(`${c.prefix}processed_scores`);
        const kept = (values: Float32Array): number[] => [...values.keys()].filter((i) => values[i] !== -Infinity);
        expect(kept(actual)).toEqual(kept(expected));
        expectClose(ops.softmax(scores).toFloat32(), goldens.floats(`${c.prefix}probabilities`), {
          atol: 1e-6,
          rtol: 1e-5,
        });
      }),
    );
  });

  it.each([
    ['top-k', { topK: 1 }, 3, [1, 2, 4]],
    ['top-p, the later of equals', { topP: 0.01 }, 2, [2, 4]],
    ['min-p, the later of equals', { minP: 0.99 }, 2, [2, 4]],
    ['more than there are entries', { topK: 1, topP: 0.01, minP: 0.99 }, 9, [0, 1, 2, 3, 4]],
  ])('keeps at least as many as asked for: %s', (_, { topK = 0, topP = 1, minP = 0 }: Filters, least, kept) =>
    scope(() => {
      const filters = { temperature: f32([1]), topK: i32([topK]), topP: f32([topP]), minP: f32([minP]) };
      const scores = ops.warpLogits(f32([0, 2, 2, -1, 3], [1, 5]), { ...filters, minTokensToKeep: least }).toFloat32();
      expect([...scores.keys()].filter((id) => scores[id] !== -Infinity)).toEqual(kept);
    }),
  );

  const draw = (scores: Tensor, temperature: number[], seeds: number[], steps: number[]): number[] =>
    scope(() => [
      ...ops
        .sample(scores, {
          temperature: f32(temperature),
          seed: i32(
            seeds.flatMap((seed) => [seed, 0]),
            [seeds.length, 2],
          ),
          step: i32(steps),
        })
        .toArray(),
    ]);

  it('takes the arg max where temperature is 0, the lowest id on ties', () =>
    scope(() => {
      const scores = f32([0, 3, 3, -1, -Infinity, -Infinity, -7, -9], [2, 4]);
      expect(draw(scores, [0, 0], [1, 2], [0, 0])).toEqual([1, 2]);
    }));

  it('draws in proportion to the probabilities', () =>
    scope(() => {
      const probabilities = [0.5, 0.25, 0, 0.125, 0.125];
      const n = isChecked(device) ? 2000 : 20000;
      const row = probabilities.map((p) => Math.log(p));
      const scores = f32(Array.from({ length: n }, () => row).flat(), [n, 5]);
      const ids = draw(
        scores,
        Array(n).fill(1),
        Array(n).fill(42),
        Array.from({ length: n }, (_, i) => i),
      );
      // five standard deviations of a binomial count
      for (const [id, p] of probabilities.entries()) {
        const count = ids.filter((drawn) => drawn === id).length;
        expect(Math.abs(count - n * p), `count of ${id}`).toBeLessThanOrEqual(5 * Math.sqrt(n * p * (1 - p)));
      }
    }));

  it('gives the same id for the same seed and step whatever the batch', () =>
    scope(() => {
      const row = Array.from({ length: 257 }, (_, i) => Math.sin(i * 7.3) * 3);
      const batch = f32(
        [...row, ...row, ...row].map((v, i) => (i < 257 ? v + 1 : v)),
        [3, 257],
      );
      const together = draw(batch, [1, 0.7, 0.7], [5, 9, 9], [0, 3, 4]);
      const alone = draw(f32(row, [1, 257]), [0.7], [9], [3]);
      expect(together[1]).toBe(alone[0]);
      expect(draw(batch, [1, 0.7, 0.7], [5, 9, 9], [0, 3, 4])).toEqual(together);
    }));

  it.each([
    ['a NaN', [0, NaN, 1]],
    ['nothing finite', [-Infinity, -Infinity, -Infinity]],
    ['an infinite score', [0, Infinity, 1]],
  ])('answers -1 for a row with %s, greedy or not, and leaves the others alone', (_, row) =>
    scope(() => {
      const scores = f32([...row, 0, 5, 1], [2, 3]);
      expect(draw(scores, [0, 0], [1, 1], [0, 0])).toEqual([-1, 1]);
      expect(draw(scores, [1, 0], [1, 1], [0, 0])).toEqual([-1, 1]);
    }),
  );

  it('finds the k largest in order', () =>
    scope(() => {
      const { values, ids } = ops.topK(f32([3, 9, 9, -1, 4, 0, 0, 0, 0, 0], [2, 5]), 3);
      expect([...ids.toArray()]).toEqual([1, 2, 4, 0, 1, 2]);
      expect([...values.toArray()]).toEqual([9, 9, 4, 0, 0, 0]);
      expect(() => ops.topK(f32([1, 2], [1, 2]), 3)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    }));

  it('refuses offsets that lie about the history', () =>
    scope(() => {
      const good = {
        history: i32([1]),
        cuHistory: i32([0, 1]),
        banned: i32([]),
        cuBanned: i32([0, 0]),
        repetitionPenalty: f32([2]),
      };
      for (const cu of [
        [0, 9],
        [-5, 1],
        [1, 0],
      ]) {
        const lie = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
        for (const offsets of [{ cuHistory: i32(cu) }, { cuBanned: i32(cu) }]) {
          const scores = f32([1, 2], [1, 2]);
          // A GPU reports it with the next download.
          const penalize = () => {
            ops.penalizeLogits(scores, { ...good, ...offsets });
            scores.toFloat32();
          };
          expect(penalize).toThrow(lie);
        }
      }
    }));
});
