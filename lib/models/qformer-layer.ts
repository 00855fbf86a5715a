// One Q-Former layer, post-norm as in BERT (Devlin et al. 2019): shared self-attention, cross-attention of the queries to
// the image in every n-th layer, then a feed-forward each for queries and text. The norm of every part follows its residual.

import type { Activation, QFormerConfig } from '../io/config.js';
import { Linear } from '../nn/linear.js';
import { LayerNorm } from '../nn/norm.js';
import type { ParameterSource } from '../nn/parameter.js';
import { ops, type Tensor } from '../tensor/index.js';
import type { QFormerMask } from './qformer.js';
import type { QFormerLayout } from './qformer-layout.js';

const ATTENTION_MASK = { itc: 'itc', itg: 'itg', itm: 'full' } as const;

/** Self-attention, cross-attention where `index` is a multiple of the frequency, and the feed-forwards. */
export class QFormerLayer {
  readonly attention: QFormerAttention;
  readonly crossattention: QFormerAttention | undefined;
  readonly queryFeedForward: QFormerFeedForward;
  readonly textFeedForward: QFormerFeedForward | undefined;

  constructor(source: ParameterSource, prefix: string, config: QFormerConfig, index: number) {
    const { hiddenSize, encoderHiddenSize, crossAttentionFrequency, useTextInput } = config;
    this.attention = new QFormerAttention(source, `${prefix}.attention`, config, hiddenSize);
    if (index % crossAttentionFrequency === 0) {
      this.crossattention = new QFormerAttention(source, `${prefix}.crossattention`, config, encoderHiddenSize);
    }
    this.queryFeedForward = new QFormerFeedForward(source, prefix, '_query', config);
    if (useTextInput) this.textFeedForward = new QFormerFeedForward(source, prefix, '', config);
  }

  /** x: [rows, hidden] f32, features: [image rows, encoder_hidden] f32 → [rows, hidden] f32 */
  forward(x: Tensor, layout: QFormerLayout, features: Tensor | undefined, mask: QFormerMask): Tensor {
    const attended = this.attention.forward(x, x, {
      cuSeqlensQ: layout.rows,
      cuSeqlensK: layout.rows,
      mask: ATTENTION_MASK[mask],
      numQuery: layout.numQuery,
    });
    const text = layout.textOf(attended);
    let queries = layout.queriesOf(attended);
    if (queries !== undefined && this.crossattention !== undefined) {
      queries = this.crossattention.forward(queries, features!, {
        cuSeqlensQ: layout.queryRows,
        cuSeqlensK: layout.imageRows,
        mask: 'full',
      });
    }
    return layout.join(queries && this.queryFeedForward.forward(queries), text && this.textFeedForward!.forward(text));
  }
}

/** Which rows attend to which, as the attention op takes it. */
interface AttentionRows {
  cuSeqlensQ: Tensor;
  cuSeqlensK: Tensor;
  mask: 'full' | 'itc' | 'itg';
  numQuery?: number;
}

/** norm(dense(attention(query x, key context, value context)) + x); context is x itself or the image. */
export class QFormerAttention {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly dense: Linear;
  readonly norm: LayerNorm;
  readonly #numHeads: number;

  constructor(source: ParameterSource, prefix: string, config: QFormerConfig, contextSize: number) {
    const { hiddenSize, numHeads, layerNormEps } = config;
    this.#numHeads = numHeads;
    this.query = new Linear(source, `${prefix}.attention.query`, hiddenSize, hiddenSize);
    this.key = new Linear(source, `${prefix}.attention.key`, contextSize, hiddenSize);
    this.value = new Linear(source, `${prefix}.attention.value`, contextSize, hiddenSize);
    this.dense = new Linear(source, `${prefix}.output.dense`, hiddenSize, hiddenSize);
    this.norm = new LayerNorm(source, `${prefix}.output.LayerNorm`, hiddenSize, layerNormEps);
  }

  /** x: [rows_q, hidden] f32, context: [rows_k, context_size] f32 → [rows_q, hidden] f32 */
  forward(x: Tensor, context: Tensor, rows: AttentionRows): Tensor {
    const hiddenSize = x.shape[1]!;
    const headDim = hiddenSize / this.#numHeads;
    const heads = (t: Tensor) => t.reshape([t.shape[0]!, this.#numHeads, headDim]);
    const attended = ops.attention(
      heads(this.query.forward(x)),
      heads(this.key.forward(context)),
      heads(this.value.forward(context)),
      { ...rows, scale: headDim ** -0.5 },
    );
    return this.norm.forward(this.dense.forward(attended.reshape([x.shape[0]!, hiddenSize]), { residual: x }));
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

  /** x: [rows, hidden] f32 → [rows, hidden] f32 */
  forward(x: Tensor): Tensor {
    const inner = this.intermediate.forward(x, { activation: this.#activation });
    return this.norm.forward(this.output.forward(inner, { residual: x }));
  }
}
