// T5 (Raffel et al. 2020) and Flan-T5: an encoder that reads the whole prompt at once and a decoder that attends to itself and to
// what the encoder made of it. Scores are not scaled; a learned bias per head and distance stands for positions, one table per
// stack. Distances from `relativeMaxDistance` on share a value, so a table by distance serves sequences of any length.
// Residuals are f32 in every dtype: T5's grow past the range of f16, and the reference keeps them from rounding in bf16.
// What cross-attention reads lies in the same paged cache as the decoder's own keys and values, in blocks of its own.

import type { T5Config } from '../io/config.js';
import { Embedding, headLogits, outputHead } from '../nn/embedding.js';
import { Linear } from '../nn/linear.js';
import { RmsNorm } from '../nn/norm.js';
import type { Activations, Parameter, ParameterSource } from '../nn/parameter.js';
import { runLayers } from '../nn/sequences.js';
import { ops, scope, Tensor } from '../tensor/index.js';
import type { BatchInputs, CrossInputs, EncoderInputs, KvCache, LanguageModel } from './model.js';
import { relativePositionBucket } from './t5-buckets.js';

/** A T5 model; `prefix` is '' for a bare checkpoint and 'language_model.' inside a vision-language one. */
export class T5 implements LanguageModel {
  readonly shared: Embedding;
  readonly encoder: T5Encoder;
  readonly decoderBlocks: readonly T5DecoderBlock[];
  readonly decoderFinalLayerNorm: RmsNorm;
  readonly lmHead: Parameter;
  readonly #math: ops.Math;
  readonly #activations: Activations;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: T5Config,
  ) {
    const { hiddenSize, numLayers, layerNormEps, tieWordEmbeddings } = config;
    this.shared = new Embedding(source, `${prefix}shared`, hiddenSize);
    for (const stack of ['encoder', 'decoder']) source.ignore(`${prefix}${stack}.embed_tokens.weight`);
    this.encoder = new T5Encoder(source, `${prefix}encoder`, config);
    const decoder = `${prefix}decoder`;
    const bias = distanceBias(source, `${decoder}.block.0.layer.0.SelfAttention`, config, false);
    this.decoderBlocks = Array.from(
      { length: numLayers },
      (_, i) => new T5DecoderBlock(source, `${decoder}.block.${i}`, config, bias),
    );
    this.decoderFinalLayerNorm = new RmsNorm(source, `${decoder}.final_layer_norm`, hiddenSize, layerNormEps);
    this.lmHead = outputHead(source, `${prefix}lm_head.weight`, this.shared, tieWordEmbeddings);
    this.#math = source.math;
    this.#activations = source.activations;
  }

  get numLayers(): number {
    return this.config.numLayers;
  }

  get numKvHeads(): number {
    return this.config.numHeads;
  }

  get headDim(): number {
    return this.config.headDim;
  }

  get hiddenSize(): number {
    return this.config.hiddenSize;
  }

  get vocabSize(): number {
    return this.shared.rows;
  }

  get maxPositions(): number {
    return this.config.maxPositionEmbeddings;
  }

  embed(ids: Tensor): Tensor {
    return this.shared.forward(ids);
  }

  encode(inputsEmbeds: Tensor, { cuSeqlens, slotMapping, kvCache }: EncoderInputs): void {
    scope(() => {
      const hidden = inDtype(this.encoder.forward(inputsEmbeds, cuSeqlens), this.#activations);
      this.decoderBlocks.forEach(({ crossAttention }, i) => {
        const { k, v } = kvCache.layers[i]!;
        scope(() => crossAttention.append(hidden, k, v, slotMapping));
      });
    });
  }

  forward(inputsEmbeds: Tensor, batch: BatchInputs): Tensor {
    return scope(() => {
      const blocks = this.decoderBlocks;
      const hidden = runLayers(inDtype(inputsEmbeds, 'f32'), blocks, (block, x, i) => block.forward(x, batch, i));
      return this.decoderFinalLayerNorm.forward(hidden);
    });
  }

  logits(hidden: Tensor): Tensor {
    return scope(() => {
      const scaled = this.config.tieWordEmbeddings ? ops.affine(hidden, this.hiddenSize ** -0.5) : hidden;
      return headLogits(this.lmHead, inDtype(scaled, this.#activations), this.#math);
    });
  }
}

/** The encoder: bidirectional, all tokens of a sequence at once. */
export class T5Encoder {
  readonly blocks: readonly T5EncoderBlock[];
  readonly finalLayerNorm: RmsNorm;

  constructor(source: ParameterSource, prefix: string, config: T5Config) {
    const { hiddenSize, numEncoderLayers, layerNormEps } = config;
    const bias = distanceBias(source, `${prefix}.block.0.layer.0.SelfAttention`, config, true);
    this.blocks = Array.from(
      { length: numEncoderLayers },
      (_, i) => new T5EncoderBlock(source, `${prefix}.block.${i}`, config, bias),
    );
    this.finalLayerNorm = new RmsNorm(source, `${prefix}.final_layer_norm`, hiddenSize, layerNormEps);
  }

  /** inputsEmbeds: [t, hidden] of packed sequences, cuSeqlens: [b + 1] i32 → [t, hidden] f32 after the final norm */
  forward(inputsEmbeds: Tensor, cuSeqlens: Tensor): Tensor {
    return scope(() => {
      const hidden = runLayers(inDtype(inputsEmbeds, 'f32'), this.blocks, (block, x) => block.forward(x, cuSeqlens));
      return this.finalLayerNorm.forward(hidden);
    });
  }
}

/** x + attention(norm x), then x + feedForward(norm x). */
export class T5EncoderBlock {
  readonly selfAttention: T5Attention;
  readonly feedForward: T5FeedForward;

  constructor(
    source: ParameterSource,
    prefix: string,
    config: T5Config,
    readonly bias: DistanceTable,
  ) {
    this.selfAttention = new T5Attention(source, `${prefix}.layer.0`, 'SelfAttention', config);
    this.feedForward = new T5FeedForward(source, `${prefix}.layer.1`, config);
  }

  /** x: [t, hidden] f32 → [t, hidden] f32 */
  forward(x: Tensor, cuSeqlens: Tensor): Tensor {
    const attention = this.selfAttention;
    const normed = attention.normed(x);
    const [k, v] = attention.keysAndValues(normed);
    const { math } = attention.q;
    const options = { cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens, scale: 1, bias: biasOf(this.bias), math };
    return this.feedForward.forward(attention.output(ops.attention(attention.queries(normed), k, v, options), x));
  }
}

/** x + attention(norm x), x + crossAttention(norm x), x + feedForward(norm x). */
export class T5DecoderBlock {
  readonly selfAttention: T5Attention;
  readonly crossAttention: T5Attention;
  readonly feedForward: T5FeedForward;

  constructor(
    source: ParameterSource,
    prefix: string,
    config: T5Config,
    readonly bias: DistanceTable,
  ) {
    this.selfAttention = new T5Attention(source, `${prefix}.layer.0`, 'SelfAttention', config);
    this.crossAttention = new T5Attention(source, `${prefix}.layer.1`, 'EncDecAttention', config);
    this.feedForward = new T5FeedForward(source, `${prefix}.layer.2`, config);
  }

  /** x: [t, hidden] f32 → [t, hidden] f32; `index` is the block's place in the cache. */
  forward(x: Tensor, batch: BatchInputs, index: number): Tensor {
    const cache = batch.kvCache.layers[index]!;
    const attended = this.selfAttention.overCache(x, cache, { ...batch, bias: biasOf(this.bias) });
    return this.feedForward.forward(this.crossAttention.overCache(attended, cache, batch.cross!));
  }
}

/** Projections of one attention and the norm in front of it, `PREFIX.layer_norm` and `PREFIX.NAME.{q,k,v,o}`. */
export class T5Attention {
  readonly layerNorm: RmsNorm;
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  readonly #activations: Activations;
  readonly #heads: number;
  readonly #headDim: number;

  constructor(source: ParameterSource, prefix: string, name: string, config: T5Config) {
    const { hiddenSize, numHeads, headDim, layerNormEps } = config;
    const inner = numHeads * headDim;
    const into = (part: string) => new Linear(source, `${prefix}.${name}.${part}`, hiddenSize, inner, false);
    this.layerNorm = new RmsNorm(source, `${prefix}.layer_norm`, hiddenSize, layerNormEps);
    [this.q, this.k, this.v] = [into('q'), into('k'), into('v')];
    this.o = new Linear(source, `${prefix}.${name}.o`, inner, hiddenSize, false);
    this.#activations = source.activations;
    this.#heads = numHeads;
    this.#headDim = headDim;
  }

  /** x: [t, hidden] f32 → what the projections read: [t, hidden] activations */
  normed(x: Tensor): Tensor {
    return inDtype(this.layerNorm.forward(x), this.#activations);
  }

  /** x: [t, hidden] activations → [t, heads, head_dim] */
  queries(x: Tensor): Tensor {
    return this.#split(this.q.forward(x));
  }

  /** x: [t, hidden] activations → two of [t, heads, head_dim] */
  keysAndValues(x: Tensor): [k: Tensor, v: Tensor] {
    return [this.#split(this.k.forward(x)), this.#split(this.v.forward(x))];
  }

  /** Writes keys and values of x: [t, hidden] to their slots of the cache. */
  append(x: Tensor, kCache: Tensor, vCache: Tensor, slotMapping: Tensor): void {
    const [k, v] = this.keysAndValues(x);
    ops.kvAppend(k, v, kCache, vCache, slotMapping);
  }

  /**
   * x + attention(norm x) over keys and values in the cache, to which those of x are added first where it has slots for them.
   * x: [t, hidden] f32 → [t, hidden] f32
   */
  overCache(
    x: Tensor,
    { k, v }: KvCache['layers'][number],
    where: CrossInputs & { slotMapping?: Tensor; bias?: ops.DistanceBias },
  ): Tensor {
    const normed = this.normed(x);
    if (where.slotMapping !== undefined) this.append(normed, k, v, where.slotMapping);
    return this.output(ops.pagedAttention(this.queries(normed), k, v, { ...where, scale: 1, math: this.q.math }), x);
  }

  /** heads: [t, heads, head_dim] activations, residual: [t, hidden] f32 → [t, hidden] f32 */
  output(heads: Tensor, residual: Tensor): Tensor {
    return this.o.forward(heads.reshape([heads.shape[0]!, this.#heads * this.#headDim]), { residual, dtype: 'f32' });
  }

  #split(x: Tensor): Tensor {
    return x.reshape([x.shape[0]!, this.#heads, this.#headDim]);
  }
}

/** x + wo(act(wi_0 n) · wi_1 n), or without a gate x + wo(act(wi n)), with n = norm x. */
export class T5FeedForward {
  readonly layerNorm: RmsNorm;
  /** The gate and what passes it, or the one inner projection. */
  readonly inner: readonly Linear[];
  readonly wo: Linear;
  readonly #activations: Activations;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: T5Config,
  ) {
    const { hiddenSize, intermediateSize, layerNormEps, gated } = config;
    const dense = `${prefix}.DenseReluDense`;
    this.layerNorm = new RmsNorm(source, `${prefix}.layer_norm`, hiddenSize, layerNormEps);
    this.inner = (gated ? ['wi_0', 'wi_1'] : ['wi']).map(
      (name) => new Linear(source, `${dense}.${name}`, hiddenSize, intermediateSize, false),
    );
    this.wo = new Linear(source, `${dense}.wo`, intermediateSize, hiddenSize, false);
    this.#activations = source.activations;
  }

  /** x: [t, hidden] f32 → [t, hidden] f32 */
  forward(x: Tensor): Tensor {
    const inner = this.#activated(inDtype(this.layerNorm.forward(x), this.#activations));
    return this.wo.forward(inner, { residual: x, dtype: 'f32' });
  }

  #activated(normed: Tensor): Tensor {
    const { hiddenAct: activation } = this.config;
    const [first, second] = this.inner as [Linear, Linear?];
    if (second === undefined) return first.forward(normed, { activation });
    const [gate, up] = [first.bareWeight, second.bareWeight];
    if (gate !== undefined && up !== undefined) {
      return ops.gatedLinear(normed, gate, up, { activation, math: first.math });
    }
    return ops.mul(first.forward(normed, { activation }), second.forward(normed));
  }
}

/** Values per head by distance, [heads, span], and the column of distance 0. */
export interface DistanceTable {
  table: Parameter;
  origin: number;
}

const biasOf = ({ table, origin }: DistanceTable): ops.DistanceBias => ({ table: table.tensor, origin });

/** The biases of `PREFIX.relative_attention_bias.weight` [buckets, heads], spread out over the distances that differ. */
function distanceBias(
  source: ParameterSource,
  prefix: string,
  { numHeads, relativeBuckets: numBuckets, relativeMaxDistance: maxDistance }: T5Config,
  bidirectional: boolean,
): DistanceTable {
  const name = `${prefix}.relative_attention_bias.weight`;
  const stored = source.vector(name, [numBuckets, numHeads]);
  const span = bidirectional ? 2 * maxDistance + 1 : maxDistance + 1;
  const buckets = Int32Array.from({ length: span }, (_, i) =>
    relativePositionBucket(i - maxDistance, { numBuckets, maxDistance, bidirectional }),
  );
  const table = source.derived(`${prefix}.distance_bias`, [numHeads, span], () => {
    const ids = Tensor.fromArray(buckets, [span], { device: stored.tensor.device });
    return ops.gatherRows(stored.tensor, ids).transpose(0, 1).contiguous();
  });
  return { table, origin: maxDistance };
}

const inDtype = (x: Tensor, dtype: Activations): Tensor => (x.dtype === dtype ? x : x.cast(dtype));
