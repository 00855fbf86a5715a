// What the fast paths cost in accuracy: the error of a product against f32, and how often the demonstration model still answers
// its reference questions in the same words.

import { devices, keep, ops, scope, Tensor } from '../../lib/tensor/index.js';
import type { LoadOptions } from '../../lib/index.js';
import { answerEvaluation } from '../eval/answers.js';
import { DEMONSTRATION_MODEL, importPackage } from '../model/package.js';
import { uniform } from '../random.js';
import type { Fact } from './fact.js';

const [M, N, K] = [257, 6144, 1408];

/** Facts without bounds; a smoke run leaves out the model. */
export async function accuracyFacts(smoke: boolean): Promise<Fact[]> {
  const facts = productErrors();
  if (smoke) return facts;
  const variants: [name: string, options: LoadOptions][] = [
    ['bf16 weights and products', { dtype: 'bf16' }],
    ['int8 weights', { quantize: 'int8', dtype: 'bf16' }],
    ['int4 weights', { quantize: 'int4', dtype: 'bf16' }],
    ['int8 weights and activations', { quantize: 'int8', quantizeActivations: true, dtype: 'bf16' }],
    ['int4 weights, int8 activations', { quantize: 'int4', quantizeActivations: true, dtype: 'bf16' }],
  ];
  const exact = await answersWith({ dtype: 'f32' });
  for (const [name, options] of variants) {
    const answers = await answersWith(options);
    const same = answers.filter((text, i) => text === exact[i]).length;
    const note = `${same} of ${exact.length} answers of the demonstration model`;
    facts.push({
      group: 'accuracy',
      name: `same answers as in f32, ${name}`,
      value: (100 * same) / exact.length,
      unit: '%',
      note,
    });
  }
  return facts;
}

async function answersWith(options: LoadOptions): Promise<string[]> {
  const { loadModel } = await importPackage();
  const model = await loadModel(DEMONSTRATION_MODEL, { device: 'cpu', ...options });
  try {
    return (await answerEvaluation(model)).map(({ text }) => text);
  } finally {
    await model.dispose();
  }
}

/** ‖y − y_f32‖ / ‖y_f32‖ of one product of the vision tower's size, of random numbers. */
function productErrors(): Fact[] {
  // no repeated pool here: rows of x and w must not resemble each other
  const random = (rows: number) => keep(Tensor.fromArray(Float32Array.from({ length: rows * K }, uniform), [rows, K]));
  const [x, w] = [random(M), random(N)];
  const narrow = keep(w.cast('bf16'));
  const exact = valuesOf(() => ops.linear(x, w));
  const level = devices().find(({ name }) => name === 'cpu')?.level;
  const facts = (
    [
      [`bf16 weights, f32 products`, () => ops.linear(x, narrow)],
      [`bf16 weights, bf16 products (${level})`, () => ops.linear(x, narrow, { math: 'bf16' })],
      ['int8 weights', () => ops.quantLinear(x, ops.quantize(w, { bits: 8 }))],
      ['int4 weights', () => ops.quantLinear(x, ops.quantize(w, { bits: 4 }))],
      ['int8 weights and activations', () => ops.quantLinear(x, ops.quantize(w, { bits: 8 }), { math: 'int8' })],
      ['int4 weights, int8 activations', () => ops.quantLinear(x, ops.quantize(w, { bits: 4 }), { math: 'int8' })],
    ] as const
  ).map(([name, run]): Fact => {
    const value = 100 * relativeError(valuesOf(run), exact);
    return { group: 'accuracy', name: `relative error, ${name}`, value, unit: '%', note: `M=${M} N=${N} K=${K}` };
  });
  [x, w, narrow].forEach((tensor) => tensor.dispose());
  return facts;
}

function valuesOf(run: () => Tensor): Float32Array {
  return scope(() => Float32Array.from(run().toArray() as Float32Array));
}

function relativeError(values: Float32Array, exact: Float32Array): number {
  let [error, norm] = [0, 0];
  for (let i = 0; i < exact.length; i++) {
    error += (values[i]! - exact[i]!) ** 2;
    norm += exact[i]! ** 2;
  }
  return Math.sqrt(error / norm);
}
