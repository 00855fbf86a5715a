// OPT (Zhang et al. 2022): pre-norm decoder with layer norms, learned positions, biases everywhere, a ReLU feed-forward and
// an output head tied to the embeddings. The position table begins with two rows that no token uses (the reference kept
// them for padding), so the token at position p reads row p + 2.

import type { OptConfig } from '../io/config.js';
import { Embedding, headLogits, outputHead } from '../nn/embedding.js';
import { Linear } from '../nn/linear.js';
import { LayerNorm } from '../nn/norm.js';
import type { Parameter, ParameterSource } from '../nn/parameter.js';
import { runLayers } from '../nn/sequences.js';
import { ops, scope, type Tensor } from '../tensor/index.js';
import type { BatchInputs, LanguageModel } from './model.js';

const POSITION_OFFSET = 2;
const LAYER_NORM_EPS = 1e-5;

/** An OPT decoder; `prefix` is '' for a bare checkpoint and 'language_model.' inside a vision-language one. */
export class Opt implements LanguageModel {
  readonly embedTokens: Embedding;
  readonly embedPositions: Parameter;
  readonly layers: readonly OptLayer[];
  readonly finalLayerNorm: LayerNorm;
  readonly lmHead: Parameter;
  readonly #math: ops.Math;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: OptConfig,
  ) {
    const { hiddenSize, numLayers, maxPositionEmbeddings, tieWordEmbeddings } = config;
    const decoder = `${prefix}model.decoder`;
    this.embedTokens = new Embedding(source, `${decoder}.embed_tokens`, hiddenSize);
    const rows = maxPositionEmbeddings + POSITION_OFFSET;
    this.embedPositions = source.vector(`${decoder}.embed_positions.weight`, [rows, hiddenSize]);
    this.layers = Array.from({ length: numLayers }, (_, i) => new OptLayer(source, `${decoder}.layers.${i}`, config));
    this.finalLayerNorm = new LayerNorm(source, `${decoder}.final_layer_norm`, hiddenSize, LAYER_NORM_EPS);
    this.#math = source.math;
    this.lmHead = outputHead(source, `${prefix}lm_head.weight`, this.embedTokens, tieWordEmbeddings);
  }

  get numLayers(): number {
    return this.config.numLayers;
  }

  get numKvHeads(): number {
    return this.config.numHeads;
  }

  get headDim(): number {
    return this.config.hiddenSize / this.config.numHeads;
  }

  get hiddenSize(): number {
    return this.config.hiddenSize;
  }

  get vocabSize(): number {
    return this.embedTokens.rows;
  }

  get maxPositions(): number {
    return this.config.maxPositionEmbeddings;
  }

  embed(ids: Tensor): Tensor {
    return this.embedTokens.forward(ids);
  }

  forward(inputsEmbeds: Tensor, batch: BatchInputs): Tensor {
    return scope(() => {
      const x = this.addPositions(inputsEmbeds, batch.positions);
      const hidden = runLayers(x, this.layers, (layer, h, i) => layer.forward(h, batch, i));
      return this.finalLayerNorm.forward(hidden);
    });
  }

  /** inputsEmbeds: [t, hidden], positions: [t] i32 → [t, hidden], what the first layer reads */
  addPositions(inputsEmbeds: Tensor, positions: Tensor): Tensor {
    return scope(() => {
      const table = this.embedPositions.tensor.slice(0, POSITION_OFFSET, this.embedPositions.shape[0]!);
      return ops.add(inputsEmbeds, ops.embedding(positions, table, inputsEmbeds.dtype));
    });
  }

  logits(hidden: Tensor): Tensor {
    return headLogits(this.lmHead, hidden, this.#math);
  }
}

/** One decoder layer: x + out(attention(norm x)), then x + fc2(act(fc1(norm x))). */
export class OptLayer {
  readonly selfAttnLayerNorm: LayerNorm;
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly outProj: Linear;
  readonly finalLayerNorm: LayerNorm;
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: OptConfig,
  ) {
    const { hiddenSize, intermediateSize } = config;
    const projection = (name: string) => new Linear(source, `${prefix}.self_attn.${name}`, hiddenSize, hiddenSize);
    this.selfAttnLayerNorm = new LayerNorm(source, `${prefix}.self_attn_layer_norm`, hiddenSize, LAYER_NORM_EPS);
    this.qProj = projection('q_proj');
    this.kProj = projection('k_proj');
    this.vProj = projection('v_proj');
    this.outProj = projection('out_proj');
    this.finalLayerNorm = new LayerNorm(source, `${prefix}.final_layer_norm`, hiddenSize, LAYER_NORM_EPS);
    this.fc1 = new Linear(source, `${prefix}.fc1`, hiddenSize, intermediateSize);
    this.fc2 = new Linear(source, `${prefix}.fc2`, intermediateSize, hiddenSize);
  }

  /** x: [t, hidden] → [t, hidden]; `index` is the layer's place in the cache. */
  forward(x: Tensor, batch: BatchInputs, index: number): Tensor {
    const attended = this.outProj.forward(this.#attention(this.selfAttnLayerNorm.forward(x), batch, index), {
      residual: x,
    });
    const inner = this.fc1.forward(this.finalLayerNorm.forward(attended), { activation: this.config.hiddenAct });
    return this.fc2.forward(inner, { residual: attended });
  }

  #attention(x: Tensor, batch: BatchInputs, index: number): Tensor {
    const { numHeads, hiddenSize } = this.config;
    const headDim = hiddenSize / numHeads;
    const shape = [x.shape[0]!, numHeads, headDim];
    const { k: kCache, v: vCache } = batch.kvCache.layers[index]!;
    const [k, v] = [this.kProj, this.vProj].map((projection) => projection.forward(x).reshape(shape));
    ops.kvAppend(k!, v!, kCache, vCache, batch.slotMapping);
    const heads = ops.pagedAttention(this.qProj.forward(x).reshape(shape), kCache, vCache, {
      cuSeqlensQ: batch.cuSeqlensQ,
      blockTable: batch.blockTable,
      contextLens: batch.contextLens,
      scale: headDim ** -0.5,
      math: this.qProj.math,
    });
    return heads.reshape([x.shape[0]!, hiddenSize]);
  }
}
