// Loads a checkpoint and drives its language model the way a runner does: for tests of the models alone. The cache is
// deliberately small-blocked and its blocks are handed out backwards, so that a model which ignored the block table would
// read the wrong rows.

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/io/checkpoint.js';
import type { TensorEntry } from '../../lib/io/safetensors.js';
import type { BatchInputs, KvCache, LanguageModel, VisionLanguageModel } from '../../lib/models/model.js';
import { createModel } from '../../lib/models/registry.js';
import { storedTensor } from '../../lib/models/stored-tensor.js';
import { Weights, type WeightsOptions } from '../../lib/models/weights.js';
import { MappedFile, ops, scope, Tensor, type Dtype } from '../../lib/tensor/index.js';
import { fixturePath } from './fixtures.js';

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

/** The values of a tensor as it lies in its file. */
export function storedValues(entry: TensorEntry): Float32Array {
  const file = MappedFile.open(entry.file);
  try {
    return scope(() => storedTensor(file, entry, 'cpu').toFloat32());
  } finally {
    file.close();
  }
}

/** A folder's safetensors header: tensor name → entry. */
export type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;

/** Runs `fn` on a temporary copy of a fixture's checkpoint, after `edit` changed its header or its config. */
export async function withEditedCheckpoint(
  fixture: string,
  edit: (header: Header, config: Record<string, unknown>) => void,
  fn: (dir: string) => void | Promise<void>,
): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'qformer-models-'));
  try {
    cpSync(fixturePath(fixture), dir, { recursive: true });
    const [configFile, weightsFile] = [join(dir, 'config.json'), join(dir, 'model.safetensors')];
    const file = readFileSync(weightsFile);
    const length = Number(file.readBigUInt64LE(0));
    const header = JSON.parse(file.toString('utf8', 8, 8 + length)) as Header;
    const config = JSON.parse(readFileSync(configFile, 'utf8')) as Record<string, unknown>;
    edit(header, config);
    const edited = Buffer.from(JSON.stringify(header));
    const prefix = Buffer.alloc(8);
    prefix.writeBigUInt64LE(BigInt(edited.length));
    rmSync(weightsFile);
    writeFileSync(weightsFile, Buffer.concat([prefix, edited, file.subarray(8 + length)]));
    rmSync(configFile);
    writeFileSync(configFile, JSON.stringify(config));
    await fn(dir);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** A paged cache for a few sequences of up to `capacity` tokens each, and the batches that extend them. */
export class PagedSequences {
  readonly kvCache: KvCache;
  readonly blockSize = 7;
  readonly #tables: number[][];
  readonly #lengths: number[];
  readonly #device: string;

  constructor(
    readonly model: LanguageModel,
    sequences: number,
    capacity: number,
    { device = 'cpu', dtype = 'f32' }: { device?: string; dtype?: Dtype } = {},
  ) {
    const blockSize = this.blockSize;
    this.#device = device;
    const perSequence = Math.ceil(capacity / blockSize);
    const blocks = sequences * perSequence;
    const shape = [blocks + 1, blockSize, model.numKvHeads, model.headDim];
    // interleaved and descending, block 0 unused
    this.#tables = Array.from({ length: sequences }, (_, s) =>
      Array.from({ length: perSequence }, (_, i) => blocks - (i * sequences + s)),
    );
    this.#lengths = new Array<number>(sequences).fill(0);
    this.kvCache = {
      blockSize,
      layers: Array.from({ length: model.numLayers }, () => {
        return { k: Tensor.zeros(shape, { device, dtype }), v: Tensor.zeros(shape, { device, dtype }) };
      }),
    };
  }

  /** The batch in which sequence s gets `counts[s]` new tokens. */
  next(counts: readonly number[]): BatchInputs {
    const positions = counts.flatMap((count, s) => Array.from({ length: count }, (_, i) => this.#lengths[s]! + i));
    const owners = counts.flatMap((count, s) => new Array<number>(count).fill(s));
    const slots = positions.map((p, i) => {
      const block = this.#tables[owners[i]!]![Math.floor(p / this.blockSize)]!;
      return block * this.blockSize + (p % this.blockSize);
    });
    counts.forEach((count, s) => (this.#lengths[s]! += count));
    const starts = counts.map((_, s) => counts.slice(0, s).reduce((sum, count) => sum + count, 0));
    const ints = (values: readonly number[]) => idTensor(values, this.#device);
    return {
      positions: ints(positions),
      cuSeqlensQ: ints([...starts, positions.length]),
      slotMapping: ints(slots),
      blockTable: ints(this.#tables.flat()).reshape([counts.length, this.#tables[0]!.length]),
      contextLens: ints(this.#lengths),
      kvCache: this.kvCache,
    };
  }
}

/** An encoded input and the decoder's cache behind it: two paged sequences, of which the second one grows. */
export class EncodedSequence {
  readonly #paged: PagedSequences;
  readonly #blocks: number[];
  readonly #device: string;
  readonly #tokens: number;

  /** inputs: [t, hidden], image rows in place; `capacity`: tokens of the decoder. */
  constructor(model: LanguageModel, inputs: Tensor, capacity: number) {
    const { device } = inputs;
    this.#device = device;
    this.#tokens = inputs.shape[0]!;
    this.#paged = new PagedSequences(model, 2, Math.max(this.#tokens, capacity), { device, dtype: inputs.dtype });
    const { slotMapping, blockTable, kvCache } = this.#paged.next([this.#tokens, 0]);
    model.encode!(inputs, { cuSeqlens: idTensor([0, this.#tokens], device), slotMapping, kvCache });
    this.#blocks = [...blockTable.slice(0, 0, 1).toArray()];
  }

  /** The batch in which the decoder gets `count` new tokens. */
  next(count: number): BatchInputs {
    const ints = (values: readonly number[]) => idTensor(values, this.#device);
    const cross = {
      cuSeqlensQ: ints(Array.from({ length: count + 1 }, (_, i) => i)),
      blockTable: ints(Array.from({ length: count }, () => this.#blocks).flat()).reshape([count, this.#blocks.length]),
      contextLens: ints(new Array<number>(count).fill(this.#tokens)),
    };
    return { ...this.#paged.next([0, count]), cross };
  }
}

/** Greedy generation of an encoder–decoder model from its start token 0; `logits` of every step. `bans`: never chosen. */
export function greedyEncoded(
  model: LanguageModel,
  inputs: Tensor,
  maxNewTokens: number,
  { eos = [] as readonly number[], bans = [] as readonly number[] } = {},
): { logits: Float32Array[]; ids: number[] } {
  return scope(() => {
    const sequence = new EncodedSequence(model, inputs, maxNewTokens);
    const logits: Float32Array[] = [];
    const ids: number[] = [];
    let last = 0;
    while (ids.length < maxNewTokens) {
      const row = scope(() => {
        const embeds = model.embed(idTensor([last], inputs.device));
        return model.logits(model.forward(embeds, sequence.next(1))).toFloat32();
      });
      logits.push(row);
      last = argMax(row.map((value, id) => (bans.includes(id) ? -Infinity : value)));
      ids.push(last);
      if (eos.includes(last)) break;
    }
    return { logits, ids };
  });
}

/** Integers as a tensor: [n] i32. */
export function idTensor(ids: readonly number[], device = 'cpu'): Tensor {
  return Tensor.fromArray(Int32Array.from(ids), [ids.length], { device });
}

/** What `greedy` returns: logits of every prompt position [tokens, vocab], then the chosen ids and their log-probabilities. */
export interface GreedyResult {
  promptLogits: Float32Array;
  ids: number[];
  logprobs: number[];
}

/** Greedy generation after a prompt given as embeddings, which is prefilled in pieces of `chunk` tokens. */
export function greedy(
  model: LanguageModel,
  embed: () => Tensor,
  maxNewTokens: number,
  { chunk = Infinity, eos = [] as readonly number[] } = {},
): GreedyResult {
  return scope(() => {
    const embeds = embed();
    const tokens = embeds.shape[0]!;
    const { device } = embeds;
    const sequence = new PagedSequences(model, 1, tokens + maxNewTokens, { device, dtype: embeds.dtype });
    const promptLogits = new Float32Array(tokens * model.vocabSize);
    for (let start = 0; start < tokens; start += chunk) {
      const end = Math.min(start + chunk, tokens);
      const hidden = model.forward(embeds.slice(0, start, end), sequence.next([end - start]));
      promptLogits.set(model.logits(hidden).toFloat32(), start * model.vocabSize);
    }
    const ids: number[] = [];
    const logprobs: number[] = [];
    let logits: Float32Array = promptLogits.slice((tokens - 1) * model.vocabSize);
    while (ids.length < maxNewTokens) {
      const id = argMax(logits);
      ids.push(id);
      logprobs.push(logProbabilities(logits)[id]!);
      if (eos.includes(id)) break;
      logits = scope(() =>
        model.logits(model.forward(model.embed(idTensor([id], device)), sequence.next([1]))).toFloat32(),
      );
    }
    return { promptLogits, ids, logprobs };
  });
}

/** Index of the largest value, the first among equals. */
export function argMax(values: Float32Array): number {
  return values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);
}

/** log softmax of one row. */
export function logProbabilities(logits: Float32Array): Float32Array {
  return scope(() => ops.logSoftmax(Tensor.fromArray(logits, [1, logits.length])).toFloat32());
}
