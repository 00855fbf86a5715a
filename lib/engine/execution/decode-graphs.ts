// Recorded decode steps. A graph is recorded per batch size the second time that size occurs; its inputs are one kept tensor
// that each replay overwrites, the block table padded to the full context. The recorded ops are the same as the direct
// ones and read nothing past a sequence's context, so the bits are the same. Few graphs are kept: each owns the memory of
// its intermediate results.

import type { KvCache, LanguageModel, VisionLanguageModel } from '../../models/model.js';
import { Tensor, keep, record, type Graph } from '../../tensor/index.js';
import { layOutBatch } from '../scheduling/batch.js';
import type { ScheduledSequence } from '../scheduling/scheduler.js';
import { viewStep, type StepInputs } from './step-inputs.js';

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
      step = new RecordedStep(this.options, batch, this.#width);
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
  readonly #packed: Tensor;
  readonly #inputs: StepInputs;
  readonly #graph: Graph<Tensor>;

  /** Recorded for batches like `batch`: of its size, every sequence with one new token. */
  constructor(
    private readonly options: DecodeGraphOptions,
    batch: readonly ScheduledSequence[],
    private readonly width: number,
  ) {
    const { kvPool, device } = options;
    const arrays = layOutBatch(batch, kvPool.blockSize, width);
    this.#packed = keep(Tensor.zeros([arrays.packed.length], { dtype: 'i32', device }));
    this.#inputs = viewStep(this.#packed, arrays, kvPool);
    for (const view of this.#views()) keep(view);
    try {
      this.#graph = record(() => decode(options.model.languageModel, this.#inputs));
    } catch (error) {
      this.#disposeInputs();
      throw error;
    }
  }

  run(batch: readonly ScheduledSequence[]): Tensor {
    this.#packed.write(layOutBatch(batch, this.options.kvPool.blockSize, this.width).packed);
    this.#graph.replay();
    return this.#graph.outputs;
  }

  dispose(): void {
    this.#graph.dispose();
    this.#disposeInputs();
  }

  #views(): Tensor[] {
    const { ids, logitRows, batch } = this.#inputs;
    const { positions, cuSeqlensQ, slotMapping, blockTable, contextLens, cross } = batch;
    const views = [ids, logitRows, positions, cuSeqlensQ, slotMapping, blockTable, contextLens];
    return cross === undefined ? views : [...views, cross.cuSeqlensQ, cross.blockTable, cross.contextLens];
  }

  #disposeInputs(): void {
    for (const view of this.#views()) view.dispose();
    this.#packed.dispose();
  }
}

function decode(model: LanguageModel, { ids, batch }: StepInputs): Tensor {
  return model.logits(model.forward(model.embed(ids), batch));
}
