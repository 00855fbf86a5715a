// One Q-Former layer, post-norm as in BERT (Devlin et al. 2019): shared self-attention, cross-attention of the queries to
// the image in every n-th layer, then a feed-forward each for queries and text. The norm of every part follows its residual.

import type { Activation, QFormerConfig } from '../io/config.js';
import { Linear } from '../nn/linear.js';
import { LayerNorm } from '../nn/norm.js';
import type { Parameter, ParameterSource } from '../nn/parameter.js';
import { cuSeqlens } from '../nn/sequences.js';
import { ops, type Tensor } from '../tensor/index.js';
import type { QFormerMask } from './qformer.js';
import type { QFormerLayout } from './qformer-layout.js';

const ATTENTION_MASK = { itc: 'itc', itg: 'itg', itm: 'full' } as const;

/** Keys and values of the image for one cross-attention: [batch · image_tokens, heads, head_dim], views of one tensor. */
export interface ImageKeys {
  k: Tensor;
  v: Tensor;
}

/** Self-attention, cross-attention where `crosses` says so, and the feed-forwards. */
export class QFormerLayer {
  readonly attention: QFormerAttention;
  readonly crossattention: QFormerCrossAttention | undefined;
  readonly queryFeedForward: QFormerFeedForward;
  readonly textFeedForward: QFormerFeedForward | undefined;

  constructor(source: ParameterSource, prefix: string, config: QFormerConfig, crosses: boolean) {
    this.attention = new QFormerAttention(source, `${prefix}.attention`, config);
    if (crosses) this.crossattention = new QFormerCrossAttention(source, `${prefix}.crossattention`, config);
    this.queryFeedForward = new QFormerFeedForward(source, prefix, '_query', config);
    if (config.useTextInput) this.textFeedForward = new QFormerFeedForward(source, prefix, '', config);
  }

  /** x: [rows, hidden] → [rows, hidden]; `image` where the layer crosses and there are queries */
  forward(x: Tensor, layout: QFormerLayout, image: ImageKeys | undefined, mask: QFormerMask): Tensor {
    return this.afterSelfAttention(this.selfAttention(x, layout, mask), layout, image);
  }

  /** The first part of `forward`, which no image touches. */
  selfAttention(x: Tensor, layout: QFormerLayout, mask: QFormerMask): Tensor {
    return this.attention.forward(x, layout.rows, ATTENTION_MASK[mask], layout.numQuery);
  }

  /** The rest of `forward`. */
  afterSelfAttention(attended: Tensor, layout: QFormerLayout, image: ImageKeys | undefined): Tensor {
    const text = layout.textOf(attended);
    let queries = layout.queriesOf(attended);
    if (queries !== undefined && this.crossattention !== undefined) {
      queries = this.crossattention.forward(queries, image!, layout.batch);
    }
    return layout.join(queries && this.queryFeedForward.forward(queries), text && this.textFeedForward!.forward(text));
  }
}

/** norm(dense(attention(query x, key x, value x)) + x) */
export class QFormerAttention {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly dense: Linear;
  readonly norm: LayerNorm;
  readonly #numHeads: number;

  constructor(source: ParameterSource, prefix: string, config: QFormerConfig) {
    const { hiddenSize, numHeads, layerNormEps } = config;
    this.#numHeads = numHeads;
    const linear = (name: string) => new Linear(source, `${prefix}.${name}`, hiddenSize, hiddenSize);
    this.query = linear('attention.query');
    this.key = linear('attention.key');
    this.value = linear('attention.value');
    this.dense = linear('output.dense');
    this.norm = new LayerNorm(source, `${prefix}.output.LayerNorm`, hiddenSize, layerNormEps);
  }

  /** x: [rows, hidden], cu: [batch + 1] i32 → [rows, hidden] */
  forward(x: Tensor, cu: Tensor, mask: 'full' | 'itc' | 'itg', numQuery: number): Tensor {
    const [rows, hiddenSize] = x.shape as [number, number];
    const headDim = hiddenSize / this.#numHeads;
    const heads = (layer: Linear) => layer.forward(x).reshape([rows, this.#numHeads, headDim]);
    const attended = ops.attention(heads(this.query), heads(this.key), heads(this.value), {
      cuSeqlensQ: cu,
      cuSeqlensK: cu,
      mask,
      numQuery,
      scale: headDim ** -0.5,
      math: this.query.math,
    });
    return this.norm.forward(this.dense.forward(attended.reshape([rows, hiddenSize]), { residual: x }));
  }
}

/** norm(dense(attention(query x, k, v)) + x), in one op unless rows have adapters; keys and values come from `QFormer.imageKeys`, for all layers at once. */
export class QFormerCrossAttention {
  readonly query: Linear;
  readonly dense: Linear;
  readonly norm: LayerNorm;
  readonly #headDim: number;

  constructor(source: ParameterSource, prefix: string, config: QFormerConfig) {
    const { hiddenSize, numHeads, layerNormEps } = config;
    this.#headDim = hiddenSize / numHeads;
    this.query = new Linear(source, `${prefix}.attention.query`, hiddenSize, hiddenSize);
    this.dense = new Linear(source, `${prefix}.output.dense`, hiddenSize, hiddenSize);
    this.norm = new LayerNorm(source, `${prefix}.output.LayerNorm`, hiddenSize, layerNormEps);
  }

  /** x: [batch · num_query, hidden] → [batch · num_query, hidden] */
  forward(x: Tensor, { k, v }: ImageKeys, batch: number): Tensor {
    const [rows, hiddenSize] = x.shape as [number, number];
    const weights = ({ weight, bias }: { weight: Parameter; bias: Parameter | undefined }) => {
      return { weight: weight.tensor, bias: bias!.tensor };
    };
    const numQuery = rows / batch;
    if (this.query.bareWeight === undefined || this.dense.bareWeight === undefined) {
      return this.#stepByStep(x, k, v, new Array<number>(batch).fill(numQuery));
    }
    return ops
      .qformerCrossAttention(x.reshape([batch, numQuery, hiddenSize]), k, v, {
        query: weights(this.query),
        output: weights(this.dense),
        norm: { ...weights(this.norm), eps: this.norm.eps },
        numQuery,
        scale: this.#headDim ** -0.5,
        math: this.query.math,
      })
      .reshape([rows, hiddenSize]);
  }

  #stepByStep(x: Tensor, k: Tensor, v: Tensor, queries: readonly number[]): Tensor {
    const [rows, hiddenSize] = x.shape as [number, number];
    const keys = new Array<number>(queries.length).fill(k.shape[0]! / queries.length);
    const heads = this.query.forward(x).reshape([rows, hiddenSize / this.#headDim, this.#headDim]);
    const attended = ops.attention(heads, k, v, {
      cuSeqlensQ: cuSeqlens(queries, x.device),
      cuSeqlensK: cuSeqlens(keys, x.device),
      scale: this.#headDim ** -0.5,
      math: this.query.math,
    });
    return this.norm.forward(this.dense.forward(attended.reshape([rows, hiddenSize]), { residual: x }));
  }
}

/** norm(output(act(intermediate x)) + x); the queries' and the text's differ by the suffix of their names. */
export class QFormerFeedForward {
  readonly intermediate: Linear;
  readonly output: Linear;
  readonly norm: LayerNorm;
  readonly #activation: Activation;

  constructor(source: ParameterSource, prefix: string, suffix: '' | '_query', config: QFormerConfig) {
    const { hiddenSize, intermediateSize, layerNormEps, hiddenAct } = config;
    this.#activation = hiddenAct;
    this.intermediate = new Linear(source, `${prefix}.intermediate${suffix}.dense`, hiddenSize, intermediateSize);
    this.output = new Linear(source, `${prefix}.output${suffix}.dense`, intermediateSize, hiddenSize);
    this.norm = new LayerNorm(source, `${prefix}.output${suffix}.LayerNorm`, hiddenSize, layerNormEps);
  }

  /** x: [rows, hidden] → [rows, hidden] */
  forward(x: Tensor): Tensor {
    const inner = this.intermediate.forward(x, { activation: this.#activation });
    return this.norm.forward(this.output.forward(inner, { residual: x }));
  }
}
