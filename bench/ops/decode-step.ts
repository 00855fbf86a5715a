// A whole decode step of LLaMA models with random weights: called op by op, and recorded once and replayed in one call.
// The small model shows what dispatch costs, the larger one that it vanishes beside the arithmetic.

import type { LlamaConfig } from '../../lib/io/config.js';
import { Llama } from '../../lib/models/llama.js';
import type { BatchInputs, KvCache } from '../../lib/models/model.js';
import { Parameter, type ParameterSource } from '../../lib/nn/parameter.js';
import { keep, ops, record, scope, Tensor, type Dtype } from '../../lib/tensor/index.js';
import { ints, product, randomTensor } from '../random.js';
import type { Case } from '../row.js';

const BLOCK_SIZE = 16;
const CONTEXT = 256;

type Sizes = Pick<
  LlamaConfig,
  'hiddenSize' | 'numLayers' | 'numHeads' | 'numKvHeads' | 'intermediateSize' | 'vocabSize'
>;
const DEMONSTRATION: Sizes = {
  hiddenSize: 192,
  numLayers: 4,
  numHeads: 6,
  numKvHeads: 6,
  intermediateSize: 512,
  vocabSize: 2560,
};
const LLAMA_1B_LAYERS: Sizes = {
  hiddenSize: 2048,
  numLayers: 4,
  numHeads: 32,
  numKvHeads: 4,
  intermediateSize: 5632,
  vocabSize: 32000,
};

export function decodeStepCases(smoke: boolean): Case[] {
  const small = (replayed: boolean) => decodeCase('demonstration model', DEMONSTRATION, 'f16', 1, replayed);
  const large = (replayed: boolean) => decodeCase('LLaMA-1.1B, 4 of 22 layers', LLAMA_1B_LAYERS, 'bf16', 1, replayed);
  const cases = [small(false), small(true)];
  return smoke ? cases : [...cases, large(false), large(true)];
}

/** Parameters with random values, for modules that are measured without a checkpoint. */
class RandomParameters implements ParameterSource {
  readonly math = 'f32';
  readonly activations = 'f32';
  readonly tensors: Tensor[] = [];

  constructor(
    readonly dtype: Dtype,
    readonly vocabSize: number,
  ) {}

  matrix(name: string, declared: readonly number[]): Parameter {
    const shape = declared.map((extent) => (extent < 0 ? this.vocabSize : extent));
    return this.#own(name, shape, randomTensor(shape, this.dtype, 1 / Math.sqrt(shape.at(-1)!)));
  }
  vector(name: string, shape: readonly number[]): Parameter {
    return this.#own(name, shape, randomTensor(shape));
  }
  constant(name: string, values: Float32Array, shape: readonly number[]): Parameter {
    return this.#own(name, shape, keep(Tensor.fromArray(values, shape)));
  }
  stackedMatrix(names: readonly string[], [rows, ...rest]: readonly number[]): Parameter {
    return this.matrix(names.join('+'), [names.length * rows!, ...rest]);
  }
  stackedVector(names: readonly string[], [rows]: readonly number[]): Parameter {
    return this.vector(names.join('+'), [names.length * rows!]);
  }
  derived(name: string, shape: readonly number[], compute: () => Tensor): Parameter {
    return this.#own(name, shape, keep(compute()));
  }
  ignore(): void {}

  #own(name: string, shape: readonly number[], tensor: Tensor): Parameter {
    const parameter = new Parameter(name, shape);
    parameter.assign(tensor);
    this.tensors.push(tensor);
    return parameter;
  }

  /** Bytes of weights that a decode step reads: everything but the embedding table. */
  get bytes(): number {
    const matrices = this.tensors
      .filter((tensor) => tensor.dtype === this.dtype)
      .map((tensor) => product(tensor.shape));
    return 2 * (matrices.reduce((all, count) => all + count, 0) - (matrices[0] ?? 0));
  }
}

function decodeCase(of: string, sizes: Sizes, dtype: 'f16' | 'bf16', batch: number, replayed: boolean): Case {
  const perLayer =
    2 * sizes.hiddenSize ** 2 * (1 + sizes.numKvHeads / sizes.numHeads) + 3 * sizes.hiddenSize * sizes.intermediateSize;
  const weights = sizes.numLayers * perLayer + sizes.vocabSize * sizes.hiddenSize;
  return {
    group: 'decode step',
    name: `${of}, ${dtype}, batch ${batch}, context ${CONTEXT}, ${replayed ? 'replayed' : 'op by op'}`,
    flops: 2 * batch * weights,
    bytes: 2 * weights,
    compute: 'f32',
    memory: weights > 2 ** 26 ? 'dram' : 'l3',
    prepare() {
      const source = new RandomParameters(dtype, sizes.vocabSize);
      const model = new Llama(source, '', fullConfig(sizes));
      const inputs = batchInputs(model, batch);
      const ids = ints(Array(batch).fill(5));
      const step = () => ops.topK(model.logits(model.forward(model.embed(ids), inputs.batch)), 1);
      const graph = replayed ? record(step) : undefined;
      const dispose = () => {
        graph?.dispose();
        [ids, ...source.tensors, ...inputs.tensors].forEach((tensor) => tensor.dispose());
      };
      return { run: graph === undefined ? () => scope(() => void step()) : () => graph.replay(), dispose };
    },
  };
}

/** Number of ops that one decode step of the demonstration model records. */
export function decodeStepOps(): number {
  const source = new RandomParameters('f16', DEMONSTRATION.vocabSize);
  const model = new Llama(source, '', fullConfig(DEMONSTRATION));
  const inputs = batchInputs(model, 1);
  const ids = ints([5]);
  const graph = record(() => ops.topK(model.logits(model.forward(model.embed(ids), inputs.batch)), 1));
  const count = graph.size;
  graph.dispose();
  [ids, ...source.tensors, ...inputs.tensors].forEach((tensor) => tensor.dispose());
  return count;
}

function fullConfig(sizes: Sizes): LlamaConfig {
  return {
    modelType: 'llama',
    ...sizes,
    configVocabSize: sizes.vocabSize,
    headDim: sizes.hiddenSize / sizes.numHeads,
    rmsNormEps: 1e-6,
    maxPositionEmbeddings: 2048,
    ropeTheta: 10000,
    tieWordEmbeddings: false,
    hiddenAct: 'silu',
    eosTokenIds: [2],
  };
}

function batchInputs(model: Llama, batch: number): { batch: BatchInputs; tensors: Tensor[] } {
  const perSequence = CONTEXT / BLOCK_SIZE;
  const shape = [batch * perSequence, BLOCK_SIZE, model.numKvHeads, model.headDim];
  const layers = Array.from({ length: model.numLayers }, () => ({ k: randomTensor(shape), v: randomTensor(shape) }));
  const kvCache: KvCache = { layers, blockSize: BLOCK_SIZE };
  const each = (value: (i: number) => number, count = batch) => Array.from({ length: count }, (_, i) => value(i));
  const tensors = {
    positions: ints(each(() => CONTEXT - 1)),
    cuSeqlensQ: ints(each((i) => i, batch + 1)),
    slotMapping: ints(each((i) => (i + 1) * CONTEXT - 1)),
    blockTable: ints(
      each((i) => i, batch * perSequence),
      [batch, perSequence],
    ),
    contextLens: ints(each(() => CONTEXT)),
  };
  const all = [...Object.values(tensors), ...layers.flatMap(({ k, v }) => [k, v])];
  return { batch: { ...tensors, kvCache }, tensors: all };
}
