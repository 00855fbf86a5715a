// Linear layers of the models this library runs: y = x·wᵀ with the weight coming from DRAM, as it does in a model.
// M = 1 is a decode step (a matrix-vector product, bound by reading the weight), 8 a small batch, 32 the Q-Former's queries,
// 257 an image in the ViT.

import { ops, scope, type Dtype } from '../../lib/tensor/index.js';
import { product, randomTensor, Rotation } from '../random.js';
import type { Case } from '../row.js';

const SHAPES: readonly (readonly [n: number, k: number, of: string])[] = [
  [6144, 1408, 'ViT-g fc1'],
  [1408, 1408, 'ViT-g proj'],
  [4096, 4096, 'LLaMA-7B q'],
  [11008, 4096, 'LLaMA-7B gate'],
  [768, 768, 'Q-Former'],
];
const ROWS = [1, 8, 32, 257];

const SMOKE = ['M=257 N=6144 K=1408 f32', 'M=1 N=4096 K=4096 bf16'];

interface Variant {
  dtype: 'f32' | 'f16' | 'bf16';
  math: 'f32' | 'bf16';
}
const VARIANTS: readonly Variant[] = [
  { dtype: 'f32', math: 'f32' },
  { dtype: 'f16', math: 'f32' },
  { dtype: 'bf16', math: 'f32' },
  { dtype: 'bf16', math: 'bf16' },
];

export function linearCases(smoke: boolean): Case[] {
  const cases: Case[] = [];
  for (const [n, k] of SHAPES) {
    for (const m of ROWS) for (const variant of VARIANTS) cases.push(linearCase(m, n, k, variant));
  }
  cases.push(gatedCase(1, 11008, 4096, 'bf16'), gatedCase(32, 5632, 2048, 'bf16'));
  if (!smoke) return cases;
  return cases.filter(({ name }) => SMOKE.includes(name) || name.includes('N=768'));
}

function linearCase(m: number, n: number, k: number, { dtype, math }: Variant): Case {
  return {
    group: 'linear',
    name: `M=${m} N=${n} K=${k} ${dtype}${math === 'bf16' ? ', bf16 math' : ''}`,
    flops: 2 * m * n * k,
    bytes: n * k * size(dtype) + 4 * m * (n + k),
    compute: math,
    memory: 'dram',
    prepare() {
      const x = randomTensor([m, k]);
      const weights = rotatedWeights([n, k], dtype);
      return {
        run: () => scope(() => void ops.linear(x, weights.next(), { math })),
        dispose: () => [x, ...weights.copies].forEach((tensor) => tensor.dispose()),
      };
    },
  };
}

function gatedCase(m: number, n: number, k: number, dtype: 'f32' | 'bf16'): Case {
  return {
    group: 'gatedLinear',
    name: `M=${m} N=${n} K=${k} ${dtype}`,
    flops: 4 * m * n * k,
    bytes: 2 * n * k * size(dtype) + 4 * m * (n + k),
    compute: 'f32',
    memory: 'dram',
    prepare() {
      const x = randomTensor([m, k]);
      const weights = rotatedWeights([n, k], dtype);
      return {
        run: () => scope(() => void ops.gatedLinear(x, weights.next(), weights.next())),
        dispose: () => [x, ...weights.copies].forEach((tensor) => tensor.dispose()),
      };
    },
  };
}

function rotatedWeights(shape: readonly number[], dtype: Dtype): Rotation<ReturnType<typeof randomTensor>> {
  const scale = 1 / Math.sqrt(shape[1]!);
  return new Rotation(product(shape) * size(dtype), () => randomTensor(shape, dtype, scale));
}

function size(dtype: Dtype): number {
  return dtype === 'f32' ? 4 : 2;
}
