// Recorded decode steps. A graph is recorded per batch size the second time that size occurs; its inputs are kept tensors
// that each replay overwrites, the block table padded to the full context. The recorded ops are the same as the direct
// ones and read nothing past a sequence's context, so the bits are the same. Few graphs are kept: each owns the memory of
// its intermediate results.

import type { BatchInputs, KvCache, LanguageModel, VisionLanguageModel } from '../models/model.js';
import { Tensor, keep, record, type Graph } from '../tensor/index.js';
import { layOutBatch } from './batch.js';
import type { ScheduledSequence } from './scheduler.js';

export interface DecodeGraphOptions {
  model: VisionLanguageModel;
  kvPool: KvCache;
  device: string;
  maxContext: number;
}

const MAX_GRAPHS = 16;

/** Graphs by batch size. */
export class DecodeGraphs {
  readonly #recorded = new Map<number, RecordedStep>();
  readonly #seen = new Set<number>();
  readonly #width: number;

  constructor(private readonly options: DecodeGraphOptions) {
    this.#width = Math.ceil(options.maxContext / options.kvPool.blockSize);
  }

  /** Logits [b, vocab] f32 of a batch that only decodes, valid until the next run; undefined: run it directly. */
  run(batch: readonly ScheduledSequence[]): Tensor | undefined {
    const size = batch.length;
    let step = this.#recorded.get(size);
    if (step === undefined) {
      if (!this.#seen.has(size)) return void this.#seen.add(size);
      if (this.#recorded.size >= MAX_GRAPHS) this.#dropOldest();
      step = new RecordedStep(this.options, size, this.#width);
    }
    this.#recorded.delete(size);
    this.#recorded.set(size, step);
    return step.run(batch);
  }

  dispose(): void {
    for (const step of this.#recorded.values()) step.dispose();
    this.#recorded.clear();
  }

  #dropOldest(): void {
    for (const [size, step] of this.#recorded) {
      step.dispose();
      this.#recorded.delete(size);
      return;
    }
  }
}

class RecordedStep {
  readonly #ids: Tensor;
  readonly #inputs: BatchInputs;
  readonly #graph: Graph<Tensor>;

  constructor(
    private readonly options: DecodeGraphOptions,
    size: number,
    private readonly width: number,
  ) {
    const input = (shape: number[]): Tensor => keep(Tensor.zeros(shape, { dtype: 'i32', device: options.device }));
    this.#ids = input([size]);
    this.#inputs = {
      positions: input([size]),
      cuSeqlensQ: input([size + 1]),
      slotMapping: input([size]),
      blockTable: input([size, width]),
      contextLens: input([size]),
      kvCache: options.kvPool,
    };
    this.#inputs.cuSeqlensQ.write(Int32Array.from({ length: size + 1 }, (_, i) => i));
    try {
      this.#graph = record(() => decode(options.model.languageModel, this.#ids, this.#inputs));
    } catch (error) {
      this.#disposeInputs();
      throw error;
    }
  }

  run(batch: readonly ScheduledSequence[]): Tensor {
    const arrays = layOutBatch(batch, this.options.kvPool.blockSize, this.width);
    this.#ids.write(arrays.ids);
    this.#inputs.positions.write(arrays.positions);
    this.#inputs.slotMapping.write(arrays.slotMapping);
    this.#inputs.blockTable.write(arrays.blockTable);
    this.#inputs.contextLens.write(arrays.contextLens);
    this.#graph.replay();
    return this.#graph.outputs;
  }

  dispose(): void {
    this.#graph.dispose();
    this.#disposeInputs();
  }

  #disposeInputs(): void {
    const { positions, cuSeqlensQ, slotMapping, blockTable, contextLens } = this.#inputs;
    for (const tensor of [this.#ids, positions, cuSeqlensQ, slotMapping, blockTable, contextLens]) tensor.dispose();
  }
}

function decode(model: LanguageModel, ids: Tensor, inputs: BatchInputs): Tensor {
  return model.logits(model.forward(model.embed(ids), inputs));
}
