// Executes one step with tensors: image rows, embeddings, one forward pass over all scheduled tokens, logits of the last
// rows, sampling. Everything a step makes lives in one scope; only the KV pool, the image cache and the recorded decode
// graphs outlive it. A step costs one copy of its layout to the device, two of its sampling parameters, and one copy of the
// sampled ids back. A step whose sequences all decode replays a graph recorded for its batch size: one native call
// instead of a few hundred.

import { QFormerError } from '../../errors.js';
import type { AdapterSet, LoadedAdapter } from '../../models/adapters.js';
import type { VisionLanguageModel } from '../../models/model.js';
import { Tensor, ops, scope } from '../../tensor/index.js';
import { layOutBatch } from '../scheduling/batch.js';
import { DecodeGraphs } from './decode-graphs.js';
import { encodeInputs, type EncoderItem, type PlacedRows } from './encoder-batch.js';
import type { Runner } from '../scheduling/engine.js';
import type { StepOutput } from '../scheduling/group.js';
import type { ImageEncoder } from './image-encoder.js';
import type { BlockCopy } from '../scheduling/kv-cache.js';
import type { KvPool } from './kv-pool.js';
import { nextTokens, type LogitRow } from './next-tokens.js';
import type { ScheduledSequence } from '../scheduling/scheduler.js';
import type { Sequence } from '../scheduling/sequence.js';
import { viewStep } from './step-inputs.js';

export interface ModelRunnerOptions {
  model: VisionLanguageModel;
  kvPool: KvPool;
  /** Absent for text-only models. */
  imageEncoder?: ImageEncoder;
  adapters?: AdapterSet;
  device: string;
  /** Prompt and answer together, tokens. */
  maxContext: number;
  /** Replay recorded graphs for decode steps. Default true. */
  decodeGraphs?: boolean;
}

/** Image rows of one sequence. */
interface ImageRows extends PlacedRows {
  item: ScheduledSequence;
}

/** Sequences that one forward pass computes. */
interface Pass {
  items: ScheduledSequence[];
  /** Some of its rows have adapters. */
  hasRows: boolean;
  /** Its weights are those of this adapter. */
  adapter?: LoadedAdapter;
}

/** The engine's runner over a model. */
export class ModelRunner implements Runner {
  readonly #options: ModelRunnerOptions;
  readonly #graphs: DecodeGraphs | undefined;
  #seenChanges = 0;

  constructor(options: ModelRunnerOptions) {
    this.#options = options;
    if (options.decodeGraphs !== false) this.#graphs = new DecodeGraphs(options);
  }

  runStep(batch: readonly ScheduledSequence[], copies: readonly BlockCopy[]): (StepOutput | undefined)[] {
    return scope(() => {
      this.#options.kvPool.copyBlocks(copies);
      const outputs = new Map<ScheduledSequence, StepOutput>();
      const images = batch.flatMap((item) => this.#imageRows(item, outputs));
      const healthy = batch.filter((item) => !outputs.has(item));
      this.#encode(healthy, images);
      if (healthy.length > 0) {
        const logits = this.#forward(healthy, images);
        const rows = healthy.flatMap(rowsOf);
        const results = logits === undefined ? [] : nextTokens(logits, rows, this.#options.device);
        rows.forEach(({ item }, i) => outputs.set(item, joined(outputs.get(item), results[i]!)));
      }
      return batch.map((item) => outputs.get(item));
    });
  }

  /** Frees graphs and image cache; model and KV pool belong to whoever made them. */
  dispose(): void {
    this.#graphs?.dispose();
    this.#options.imageEncoder?.dispose();
  }

  /** [rows, vocab] f32: logits of the rows that are wanted, or undefined where none is. */
  #forward(batch: readonly ScheduledSequence[], images: readonly ImageRows[]): Tensor | undefined {
    this.#forgetStaleSteps();
    const passes = this.#passes(batch);
    if (passes.length === 1) return this.#run(passes[0]!, images);
    const rows = batch.flatMap(rowsOf);
    let logits: Tensor | undefined;
    for (const pass of passes) {
      const part = this.#run(
        pass,
        images.filter(({ item }) => pass.items.includes(item)),
      );
      if (part === undefined) continue;
      logits ??= Tensor.empty([rows.length, part.shape[1]!], { device: this.#options.device });
      // a pass keeps the order that its sequences have in the batch
      const own = rows.flatMap(({ item }, row) => (pass.items.includes(item) ? [row] : []));
      ops.scatterRows(logits, this.#i32(Int32Array.from(own)), part);
    }
    return logits;
  }

  #forgetStaleSteps(): void {
    const changes = this.#options.adapters?.changes ?? 0;
    if (changes !== this.#seenChanges) this.#graphs?.dispose();
    this.#seenChanges = changes;
  }

  /**
   * Sequences whose adapters are added row by row share a pass, those of an adapter with weights of its own have one. On the CPU
   * sequences without adapter have the same bits beside others; a GPU would round elsewhere, because rows with adapters take
   * their steps one by one, so there they have a pass of their own.
   */
  #passes(batch: readonly ScheduledSequence[]): Pass[] {
    const { adapters, device } = this.#options;
    const passes = new Map<string, Pass>();
    for (const item of batch) {
      const adapter = adapters?.active(item.sequence.adapter);
      const applies = adapter?.info.parts.includes('language') === true;
      const key = !applies ? 'bare' : adapter.variant === undefined ? 'rows' : adapter.identity;
      const pass = passes.get(key) ?? {
        items: [],
        hasRows: key === 'rows',
        ...(applies && adapter.variant && { adapter }),
      };
      pass.items.push(item);
      passes.set(key, pass);
    }
    if (device !== 'cpu' || !passes.has('rows') || !passes.has('bare')) return [...passes.values()];
    const together = batch.filter((item) => ['bare', 'rows'].some((key) => passes.get(key)!.items.includes(item)));
    passes.delete('bare');
    passes.set('rows', { items: together, hasRows: true });
    return [...passes.values()];
  }

  #run(pass: Pass, images: readonly ImageRows[]): Tensor | undefined {
    return this.#within(
      pass,
      ({ count }) => count,
      () => this.#compute(pass, images),
    );
  }

  /** Runs `fn` with the adapters of a pass, whose linear layers have `countOf` rows for each of its sequences. */
  #within<T>({ items, hasRows, adapter }: Pass, countOf: (item: ScheduledSequence) => number, fn: () => T): T {
    const { adapters } = this.#options;
    if (adapter !== undefined) return adapters!.during(adapter, fn);
    if (!hasRows) return fn();
    const slots = items.flatMap((item) => {
      const own = adapters!.active(item.sequence.adapter);
      return new Array<number>(countOf(item)).fill(own?.slot ?? -1);
    });
    return adapters!.duringRows(this.#i32(Int32Array.from(slots)), fn);
  }

  #compute({ items: batch, hasRows, adapter }: Pass, images: readonly ImageRows[]): Tensor | undefined {
    const { model, kvPool } = this.#options;
    const placed = images.filter(({ item }) => item.sequence.encoder === undefined);
    const isRecorded = !hasRows && adapter === undefined && placed.length === 0;
    const isDecode = isRecorded && batch.every(({ count, sample }) => count === 1 && sample);
    const replayed = isDecode ? this.#graphs?.run(batch) : undefined;
    if (replayed !== undefined) return replayed;
    const arrays = layOutBatch(batch, kvPool.blockSize);
    const { ids, logitRows, batch: inputs } = viewStep(this.#i32(arrays.packed), arrays, kvPool);
    const embeds = model.languageModel.embed(ids);
    for (const { item, positions, rows } of placed) {
      const first = arrays.cuSeqlensQ[batch.indexOf(item)]! - item.start;
      ops.scatterRows(embeds, this.#i32(Int32Array.from(positions, (position) => first + position)), rows);
    }
    const hidden = model.languageModel.forward(embeds, inputs);
    if (arrays.logitRows.length === 0) return undefined;
    return model.languageModel.logits(ops.gatherRows(hidden, logitRows));
  }

  /** Runs the encoder over what it has not read yet. */
  #encode(batch: readonly ScheduledSequence[], images: readonly ImageRows[]): void {
    const { model, kvPool, device } = this.#options;
    const unread = batch.filter(({ sequence: { encoder } }) => encoder !== undefined && !encoder.computed);
    for (const pass of this.#passes(unread)) {
      const items = pass.items.map((item): EncoderItem => {
        return { input: item.sequence.encoder!, images: images.filter((part) => part.item === item) };
      });
      const encode = (): void => encodeInputs(model.languageModel, items, kvPool, device);
      this.#within(pass, ({ sequence }) => sequence.encoder!.tokens.length, encode);
    }
  }

  /** The image rows that fall into this step; a failure belongs to the request. */
  #imageRows(item: ScheduledSequence, outputs: Map<ScheduledSequence, StepOutput>): ImageRows[] {
    const { sequence } = item;
    const { imagePositions, encoder } = sequence;
    // an encoder reads all of its input in one step
    const { start, count } = encoder === undefined ? item : { start: 0, count: encoder.numPending };
    const from = imagePositions.findIndex((position) => position >= start);
    if (from < 0 || imagePositions[from]! >= start + count) return [];
    const began = performance.now();
    try {
      const positions = imagePositions.filter((position) => position >= start && position < start + count);
      return this.#imageParts(sequence, from, positions).map((part) => ({ item, ...part }));
    } catch (error) {
      outputs.set(item, { error });
      return [];
    } finally {
      sequence.timer.imageMs += performance.now() - began;
    }
  }

  /** Rows [from, from + positions.length) of the sequence's image rows, image by image. */
  #imageParts(sequence: Sequence, from: number, positions: readonly number[]): PlacedRows[] {
    const { imageEncoder, model } = this.#options;
    if (imageEncoder === undefined) throw new QFormerError('INVALID_ARGUMENT', 'this model reads no images');
    const perImage = model.config.numQueryTokens;
    const parts: PlacedRows[] = [];
    for (let done = 0; done < positions.length;) {
      const image = Math.floor((from + done) / perImage);
      const offset = (from + done) % perImage;
      const take = Math.min(perImage - offset, positions.length - done);
      const tokens = imageEncoder.tokens(sequence.images[image]!, sequence.instructionIds, sequence.adapter);
      // A copy: the cache may free its tensor when the next image comes in.
      const rows = ops.gatherRows(tokens, this.#i32(Int32Array.from({ length: take }, (_, i) => offset + i)));
      parts.push({ positions: positions.slice(done, done + take), rows });
      done += take;
    }
    return parts;
  }

  #i32(values: Int32Array): Tensor {
    return Tensor.fromArray(values, [values.length], { device: this.#options.device });
  }
}

/** The rows of an item whose logits are wanted, in order. */
function rowsOf(item: ScheduledSequence): (LogitRow & { item: ScheduledSequence })[] {
  const { sequence, start, count } = item;
  const { from, to } = sequence.logitPositions(start, start + count);
  return Array.from({ length: Math.max(0, to - from) }, (_, i) => ({ item, sequence, position: from + i }));
}

/** The outputs of two rows of an item as one. */
function joined(before: StepOutput | undefined, next: StepOutput): StepOutput {
  if (before === undefined || !('logprobs' in before) || !('logprobs' in next)) return before ?? next;
  return { logprobs: [...before.logprobs, ...next.logprobs], row: before.row };
}
