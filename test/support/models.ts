// Loads a checkpoint and drives its language model the way a runner does, one request at a time: for tests of the models
// alone. The cache is deliberately small-blocked and its blocks are handed out backwards, so that a model which ignored
// the block table would read the wrong rows.

import { openCheckpoint } from '../../lib/io/checkpoint.js';
import type { BatchInputs, KvCache, LanguageModel, VisionLanguageModel } from '../../lib/models/model.js';
import { createModel } from '../../lib/models/registry.js';
import { Weights, type WeightsOptions } from '../../lib/models/weights.js';
import { ops, scope, Tensor } from '../../lib/tensor/index.js';

/** A loaded model; the caller disposes it. */
export async function loadForTest<T extends VisionLanguageModel>(
  dir: string,
  options: Partial<WeightsOptions> = {},
): Promise<T> {
  const checkpoint = openCheckpoint(dir);
  const weights = new Weights(checkpoint, { device: 'cpu', dtype: 'auto', ...options });
  const model = createModel(checkpoint, weights);
  await weights.load();
  return model as T;
}

/** A cache for one sequence of up to `tokens` tokens and the batches that extend it. */
export class SingleSequence {
  readonly kvCache: KvCache;
  readonly #blocks: number[];
  #length = 0;

  constructor(
    readonly model: LanguageModel,
    tokens: number,
    readonly blockSize = 7,
  ) {
    const count = Math.ceil(tokens / blockSize);
    const shape = [count + 1, blockSize, model.numKvHeads, model.headDim];
    this.#blocks = Array.from({ length: count }, (_, i) => count - i);
    this.kvCache = {
      blockSize,
      layers: Array.from({ length: model.numLayers }, () => ({ k: Tensor.zeros(shape), v: Tensor.zeros(shape) })),
    };
  }

  /** The batch of the next `count` tokens. */
  next(count: number): BatchInputs {
    const positions = Int32Array.from({ length: count }, (_, i) => this.#length + i);
    const slots = positions.map(
      (p) => this.#blocks[Math.floor(p / this.blockSize)]! * this.blockSize + (p % this.blockSize),
    );
    this.#length += count;
    return {
      positions: Tensor.fromArray(positions, [count]),
      cuSeqlensQ: Tensor.fromArray(Int32Array.of(0, count), [2]),
      slotMapping: Tensor.fromArray(slots, [count]),
      blockTable: Tensor.fromArray(Int32Array.from(this.#blocks), [1, this.#blocks.length]),
      contextLens: Tensor.fromArray(Int32Array.of(this.#length), [1]),
      kvCache: this.kvCache,
    };
  }

  dispose(): void {
    for (const { k, v } of this.kvCache.layers) {
      k.dispose();
      v.dispose();
    }
  }
}

/** Token ids as a tensor. */
export function idTensor(ids: readonly number[]): Tensor {
  return Tensor.fromArray(Int32Array.from(ids), [ids.length]);
}

/** Logits of every position of a prompt given as embeddings, prefilled in pieces of `chunk` tokens, and greedy ids after it. */
export function greedy(
  model: LanguageModel,
  embed: () => Tensor,
  maxNewTokens: number,
  { chunk = Infinity, eos = [] as readonly number[] } = {},
): { promptLogits: Float32Array; ids: number[]; logprobs: number[] } {
  return scope(() => {
    const embeds = embed();
    const tokens = embeds.shape[0]!;
    const sequence = new SingleSequence(model, tokens + maxNewTokens);
    const promptLogits = new Float32Array(tokens * model.vocabSize);
    for (let start = 0; start < tokens; start += chunk) {
      const end = Math.min(start + chunk, tokens);
      const hidden = model.forward(embeds.slice(0, start, end), sequence.next(end - start));
      promptLogits.set(model.logits(hidden).toFloat32(), start * model.vocabSize);
    }
    const ids: number[] = [];
    const logprobs: number[] = [];
    let logits: Float32Array = promptLogits.subarray((tokens - 1) * model.vocabSize);
    while (ids.length < maxNewTokens) {
      const id = logits.reduce((best, value, i) => (value > logits[best]! ? i : best), 0);
      ids.push(id);
      logprobs.push(scope(() => ops.logSoftmax(Tensor.fromArray(logits.slice(), [1, logits.length])).toFloat32())[id]!);
      if (eos.includes(id)) break;
      logits = scope(() => model.logits(model.forward(model.embed(idTensor([id])), sequence.next(1))).toFloat32());
    }
    sequence.dispose();
    return { promptLogits, ids, logprobs };
  });
}
