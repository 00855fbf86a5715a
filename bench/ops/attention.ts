// Attention as the models use it: the ViT over an image, a causal prefill, and decode steps over the paged cache.
// Flops count the two products of full rows (half of them under a causal mask); decode is bound by reading keys and values.

import { ops, scope, type Tensor } from '../../lib/tensor/index.js';
import { ints, randomTensor, Rotation } from '../random.js';
import type { Case } from '../row.js';

const BLOCK_SIZE = 16;

export function attentionCases(smoke: boolean): Case[] {
  const cases = [
    varlenCase('ViT-g', 257, 257, 16, 16, 88, 'full'),
    varlenCase('Q-Former cross', 32, 257, 12, 12, 64, 'full'),
    varlenCase('prefill', 512, 512, 32, 4, 64, 'causal'),
    pagedCase(1, 1024, 32, 32, 128),
    pagedCase(1, 1024, 32, 4, 64),
    pagedCase(16, 1024, 32, 4, 64),
  ];
  return smoke ? [cases[0]!, cases[5]!] : cases;
}

function varlenCase(
  of: string,
  queries: number,
  keys: number,
  heads: number,
  kvHeads: number,
  headDim: number,
  mask: 'full' | 'causal',
): Case {
  return {
    group: 'attention',
    name: `${of}: ${queries}×${keys}, ${heads} heads (${kvHeads} kv) of ${headDim}, ${mask}`,
    flops: (4 * queries * keys * heads * headDim) / (mask === 'causal' ? 2 : 1),
    bytes: 4 * headDim * (2 * queries * heads + 2 * keys * kvHeads),
    compute: 'f32',
    memory: 'l3',
    prepare() {
      const q = randomTensor([queries, heads, headDim]);
      const k = randomTensor([keys, kvHeads, headDim]);
      const v = randomTensor([keys, kvHeads, headDim]);
      const [cuSeqlensQ, cuSeqlensK] = [ints([0, queries]), ints([0, keys])];
      const options = { cuSeqlensQ, cuSeqlensK, scale: headDim ** -0.5, mask };
      return {
        run: () => scope(() => void ops.attention(q, k, v, options)),
        dispose: () => [q, k, v, cuSeqlensQ, cuSeqlensK].forEach((tensor) => tensor.dispose()),
      };
    },
  };
}

function pagedCase(batch: number, context: number, heads: number, kvHeads: number, headDim: number): Case {
  const perSequence = Math.ceil(context / BLOCK_SIZE);
  const cacheShape = [batch * perSequence, BLOCK_SIZE, kvHeads, headDim];
  const bytes = 2 * 4 * batch * context * kvHeads * headDim;
  return {
    group: 'pagedAttention',
    name: `decode: batch ${batch}, context ${context}, ${heads} heads (${kvHeads} kv) of ${headDim}`,
    flops: 4 * batch * context * heads * headDim,
    bytes,
    compute: 'f32',
    memory: 'dram',
    prepare() {
      const q = randomTensor([batch, heads, headDim]);
      const caches = new Rotation<[Tensor, Tensor]>(bytes, () => [randomTensor(cacheShape), randomTensor(cacheShape)]);
      const cuSeqlensQ = ints(Array.from({ length: batch + 1 }, (_, i) => i));
      const contextLens = ints(Array.from({ length: batch }, () => context));
      const blockTable = ints(shuffledBlocks(batch * perSequence), [batch, perSequence]);
      const options = { cuSeqlensQ, blockTable, contextLens, scale: headDim ** -0.5 };
      return {
        run: () => scope(() => void ops.pagedAttention(q, ...caches.next(), options)),
        dispose: () =>
          [q, cuSeqlensQ, contextLens, blockTable, ...caches.copies.flat()].forEach((tensor) => tensor.dispose()),
      };
    },
  };
}

// A cache in use is fragmented: the blocks of a sequence do not follow each other.
function shuffledBlocks(count: number): number[] {
  const stride = 7;
  if (count % stride === 0) return Array.from({ length: count }, (_, i) => i);
  return Array.from({ length: count }, (_, i) => (i * stride) % count);
}
