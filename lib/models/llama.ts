// LLaMA (Touvron et al. 2023): pre-norm decoder with RMS norms, rotary positions, grouped-query attention over a paged
// cache and a gated feed-forward; no biases. Serves Vicuna and Ziya-LLaMA unchanged.
// The rotary pairs are (j, j + head_dim/2), the order of converted checkpoints.

import type { LlamaConfig } from '../io/config.js';
import { Embedding, headLogits, outputHead } from '../nn/embedding.js';
import { Linear } from '../nn/linear.js';
import { RmsNorm } from '../nn/norm.js';
import type { Parameter, ParameterSource } from '../nn/parameter.js';
import { rotaryFrequencies } from '../nn/rotary.js';
import { runLayers } from '../nn/sequences.js';
import { ops, scope, type Tensor } from '../tensor/index.js';
import type { BatchInputs, LanguageModel } from './model.js';

/** A LLaMA decoder; `prefix` is '' for a bare checkpoint and 'language_model.' inside a vision-language one. */
export class Llama implements LanguageModel {
  readonly embedTokens: Embedding;
  readonly layers: readonly LlamaLayer[];
  readonly norm: RmsNorm;
  readonly lmHead: Parameter;
  readonly #math: ops.Math;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: LlamaConfig,
  ) {
    const { hiddenSize, headDim, numLayers, rmsNormEps, ropeTheta, ropeScaling } = config;
    const frequencies = rotaryFrequencies(headDim, ropeTheta, ropeScaling);
    const invFreq = source.constant(`${prefix}model.rotary_emb.inv_freq`, frequencies, [frequencies.length]);
    source.ignore(`${prefix}model.rotary_emb.inv_freq`);
    this.embedTokens = new Embedding(source, `${prefix}model.embed_tokens`, hiddenSize);
    this.layers = Array.from(
      { length: numLayers },
      (_, i) => new LlamaLayer(source, `${prefix}model.layers.${i}`, config, invFreq),
    );
    this.norm = new RmsNorm(source, `${prefix}model.norm`, hiddenSize, rmsNormEps);
    this.#math = source.math;
    this.lmHead = outputHead(source, `${prefix}lm_head.weight`, this.embedTokens, config.tieWordEmbeddings);
  }

  get numLayers(): number {
    return this.config.numLayers;
  }

  get numKvHeads(): number {
    return this.config.numKvHeads;
  }

  get headDim(): number {
    return this.config.headDim;
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
      const hidden = runLayers(inputsEmbeds, this.layers, (layer, x, i) => layer.forward(x, batch, i));
      return this.norm.forward(hidden);
    });
  }

  logits(hidden: Tensor): Tensor {
    return headLogits(this.lmHead, hidden, this.#math);
  }
}

/**
 * One decoder layer in five ops: x + o_proj(attention(norm x)), then x + down(act(gate n) · up n) with n = norm x. The norms are
 * prologues of the products that read them; the first product also rotates, and writes the new keys and values to the cache.
 * Layers without a bare weight take the same steps one by one.
 */
export class LlamaLayer {
  readonly inputLayernorm: RmsNorm;
  readonly postAttentionLayernorm: RmsNorm;
  readonly qProj: Linear;
  readonly kProj: Linear;
  readonly vProj: Linear;
  readonly oProj: Linear;
  readonly gateProj: Linear;
  readonly upProj: Linear;
  readonly downProj: Linear;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: LlamaConfig,
    readonly invFreq: Parameter,
  ) {
    const { hiddenSize, numHeads, numKvHeads, headDim, intermediateSize, rmsNormEps } = config;
    this.inputLayernorm = new RmsNorm(source, `${prefix}.input_layernorm`, hiddenSize, rmsNormEps);
    this.postAttentionLayernorm = new RmsNorm(source, `${prefix}.post_attention_layernorm`, hiddenSize, rmsNormEps);
    const linear = (name: string, inFeatures: number, outFeatures: number) =>
      new Linear(source, `${prefix}.${name}`, inFeatures, outFeatures, false);
    this.qProj = linear('self_attn.q_proj', hiddenSize, numHeads * headDim);
    this.kProj = linear('self_attn.k_proj', hiddenSize, numKvHeads * headDim);
    this.vProj = linear('self_attn.v_proj', hiddenSize, numKvHeads * headDim);
    this.oProj = linear('self_attn.o_proj', numHeads * headDim, hiddenSize);
    this.gateProj = linear('mlp.gate_proj', hiddenSize, intermediateSize);
    this.upProj = linear('mlp.up_proj', hiddenSize, intermediateSize);
    this.downProj = linear('mlp.down_proj', intermediateSize, hiddenSize);
    // stored by old conversions; the same values are computed from the configuration
    source.ignore(`${prefix}.self_attn.rotary_emb.inv_freq`);
  }

  /** x: [t, hidden] → [t, hidden]; `index` is the layer's place in the cache. */
  forward(x: Tensor, batch: BatchInputs, index: number): Tensor {
    const attended = this.oProj.forward(this.#attention(x, batch, index), { residual: x });
    return this.downProj.forward(this.#gated(attended), { residual: attended });
  }

  /** act(gate n) · up n with n = norm x */
  #gated(x: Tensor): Tensor {
    const { hiddenAct: activation } = this.config;
    const [gate, up] = [this.gateProj.bareWeight, this.upProj.bareWeight];
    const norm = normOf(this.postAttentionLayernorm);
    if (gate !== undefined && up !== undefined) {
      return ops.gatedLinear(x, gate, up, { norm, activation, math: this.gateProj.math });
    }
    const normed = this.postAttentionLayernorm.forward(x);
    return ops.mul(this.gateProj.forward(normed, { activation }), this.upProj.forward(normed));
  }

  #attention(x: Tensor, batch: BatchInputs, index: number): Tensor {
    const { numHeads, headDim } = this.config;
    const { k: kCache, v: vCache } = batch.kvCache.layers[index]!;
    const heads = ops.pagedAttention(this.#queries(x, batch, kCache, vCache), kCache, vCache, {
      cuSeqlensQ: batch.cuSeqlensQ,
      blockTable: batch.blockTable,
      contextLens: batch.contextLens,
      scale: headDim ** -0.5,
      math: this.qProj.math,
    });
    return heads.reshape([x.shape[0]!, numHeads * headDim]);
  }

  /** [t, heads, head_dim]; the new keys and values are written to the cache. */
  #queries(x: Tensor, { positions, slotMapping }: BatchInputs, kCache: Tensor, vCache: Tensor): Tensor {
    const norm = normOf(this.inputLayernorm);
    const invFreq = this.invFreq.tensor;
    const [q, k, v] = [this.qProj.bareWeight, this.kProj.bareWeight, this.vProj.bareWeight];
    if (q !== undefined && k !== undefined && v !== undefined) {
      const options = { norm, positions, invFreq, kCache, vCache, slotMapping, math: this.qProj.math };
      return ops.qkvAppend(x, { q, k, v }, options);
    }
    const { numHeads, numKvHeads, headDim } = this.config;
    const normed = this.inputLayernorm.forward(x);
    const project = (layer: Linear, heads: number): Tensor =>
      layer.forward(normed).reshape([x.shape[0]!, heads, headDim]);
    const keys = ops.rope(project(this.kProj, numKvHeads), positions, invFreq);
    ops.kvAppend(keys, project(this.vProj, numKvHeads), kCache, vCache, slotMapping);
    return ops.rope(project(this.qProj, numHeads), positions, invFreq);
  }
}

const normOf = ({ weight, eps }: RmsNorm): ops.Norm => ({ weight: weight.tensor, eps });
