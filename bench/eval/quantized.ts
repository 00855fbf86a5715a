// `npm run bench:quantized`: what int8 and int4 weights cost and save. Exact match of the demonstration model on its reference
// questions; bytes; decode speed of that model and of a synthetic one whose weights do not fit any cache, all variants loaded
// at once and taking turns, so that the machine's moods meet all of them. Prints JSON.

import type { LoadOptions, Model } from '../../lib/index.js';
import { describeMachine } from '../machine.js';
import { DEMONSTRATION_MODEL as DEMO, importPackage } from '../model/package.js';
import { writeSyntheticModel } from '../model/synthetic.js';
import { answerEvaluation } from './answers.js';

const ROUNDS = 7;
const BATCHES = [1, 8];

const variants: Record<string, LoadOptions> = {
  'as stored': {},
  f32: { dtype: 'f32' },
  bf16: { dtype: 'bf16' },
  int8: { quantize: 'int8' },
  int4: { quantize: 'int4' },
  'int8, 8-bit activations': { quantize: 'int8', quantizeActivations: true },
  'int4, 8-bit activations': { quantize: 'int4', quantizeActivations: true },
};

const { loadModel } = await importPackage();

async function exactMatch(model: Model): Promise<{ right: number; questions: number }> {
  const answers = await answerEvaluation(model);
  return { right: answers.filter(({ text, expected }) => text === expected).length, questions: answers.length };
}

/** Tokens per second of `batch` sequences that decode together. */
async function decodeSpeed(model: Model, batch: number, tokens: number): Promise<number> {
  const options = { maxNewTokens: tokens, ignoreEos: true };
  const results = await Promise.all(Array.from({ length: batch }, (_, i) => model.generate([5 + i, 6, 7], options)));
  return results.reduce((sum, { timings }) => sum + timings.tokensPerSecond, 0);
}

async function measure(dir: string, tokens: number, evaluate: boolean): Promise<Record<string, object>> {
  const models: [string, Model][] = [];
  try {
    for (const [name, options] of Object.entries(variants)) models.push([name, await loadModel(dir, options)]);
    const speeds = new Map(models.map(([name]) => [name, BATCHES.map((): number[] => [])]));
    for (let round = -1; round < ROUNDS; round++) {
      for (const [name, model] of models) {
        for (const [i, batch] of BATCHES.entries()) {
          const speed = await decodeSpeed(model, batch, tokens);
          if (round >= 0) speeds.get(name)![i]!.push(speed);
        }
      }
    }
    const report: Record<string, object> = {};
    for (const [name, model] of models) {
      const decode = BATCHES.map((batch, i) => [`batch ${batch}`, summary(speeds.get(name)![i]!)] as const);
      report[name] = {
        weightBytes: model.info.weightBytes,
        decodeTokensPerSecond: Object.fromEntries(decode),
        ...(evaluate && { exactMatch: await exactMatch(model) }),
      };
    }
    return report;
  } finally {
    for (const [, model] of models) await model.dispose();
  }
}

function summary(values: number[]): { median: number; min: number; max: number } {
  const sorted = values.map((value) => Number(value.toFixed(1))).sort((a, b) => a - b);
  return { median: sorted[sorted.length >> 1]!, min: sorted[0]!, max: sorted.at(-1)! };
}

const synthetic = writeSyntheticModel(DEMO);
try {
  const report = {
    machine: describeMachine(),
    demonstrationModel: await measure(DEMO, 64, true),
    syntheticModel: await measure(synthetic.dir, 16, false),
  };
  console.log(JSON.stringify(report, null, 2));
} finally {
  synthetic.remove();
}
