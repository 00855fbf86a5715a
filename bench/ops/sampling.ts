// Choosing the next token from 32,000 logits, greedily and with every filter on: the work that follows each decode step.

import { ops, scope, Tensor, keep } from '../../lib/tensor/index.js';
import { ints, randomTensor } from '../random.js';
import type { Case } from '../row.js';

const VOCABULARY = 32000;
const HISTORY = 200;

export function samplingCases(): Case[] {
  return [1, 16].flatMap((batch) => [greedyCase(batch), filteredCase(batch), topKCase(batch)]);
}

function column(batch: number, value: number): Tensor {
  return keep(Tensor.fromArray(new Float32Array(batch).fill(value), [batch]));
}

function samplingCase(
  name: string,
  batch: number,
  make: (logits: Tensor) => { inputs: Tensor[]; run: () => unknown },
): Case {
  return {
    group: 'sampling',
    name: `${name}, batch ${batch}, vocabulary ${VOCABULARY}`,
    bytes: 4 * batch * VOCABULARY,
    memory: 'l2',
    prepare() {
      const logits = randomTensor([batch, VOCABULARY], 'f32', 10);
      const { inputs, run } = make(logits);
      return {
        run: () => scope(() => void run()),
        dispose: () => [logits, ...inputs].forEach((tensor) => tensor.dispose()),
      };
    },
  };
}

function greedyCase(batch: number): Case {
  return samplingCase('greedy', batch, (logits) => {
    const temperature = column(batch, 0);
    const [seed, step] = [ints(Array(2 * batch).fill(7), [batch, 2]), ints(Array(batch).fill(3))];
    const run = () => ops.sample(logits, { temperature, seed, step });
    return { inputs: [temperature, seed, step], run };
  });
}

function filteredCase(batch: number): Case {
  return samplingCase('penalty, top-k 50, top-p 0.9, min-p', batch, (logits) => {
    const temperature = column(batch, 0.7);
    const filters = {
      temperature,
      topK: ints(Array(batch).fill(50)),
      topP: column(batch, 0.9),
      minP: column(batch, 0.01),
    };
    const history = ints(Array.from({ length: batch * HISTORY }, (_, i) => (i * 37) % VOCABULARY));
    const cuHistory = ints(Array.from({ length: batch + 1 }, (_, i) => i * HISTORY));
    const penalty = {
      history,
      cuHistory,
      banned: ints(Array.from({ length: batch }, (_, i) => i)),
      cuBanned: ints(Array.from({ length: batch + 1 }, (_, i) => i)),
      // 1 would be skipped; a value this near to 1 leaves the logits finite however often it is applied in place
      repetitionPenalty: column(batch, 1.0000001),
    };
    const draw = { temperature, seed: ints(Array(2 * batch).fill(7), [batch, 2]), step: ints(Array(batch).fill(3)) };
    const run = () => {
      ops.penalizeLogits(logits, penalty);
      return ops.sample(ops.warpLogits(logits, filters), draw);
    };
    const inputs = [...new Set([...Object.values(filters), ...Object.values(penalty), ...Object.values(draw)])];
    return { inputs, run };
  });
}

function topKCase(batch: number): Case {
  return samplingCase('top 20 log-probabilities', batch, (logits) => {
    return { inputs: [], run: () => ops.topK(ops.logSoftmax(logits), 20) };
  });
}
