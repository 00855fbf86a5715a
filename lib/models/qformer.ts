// The Q-Former (Li et al. 2023, BLIP-2, section 3): a BERT-shaped encoder in which a few learned queries read an image
// by cross-attention, optionally beside the rows of an instruction (Dai et al. 2023, InstructBLIP).
// Rows are packed per sequence, [queries, text], without padding; `QFormerLayout` says which row is which.
// Queries and text share self-attention but have feed-forwards of their own; only queries see the image. The keys and values
// of all cross-attentions depend on the image alone: they come from one product with all those weights.

import type { QFormerConfig } from '../io/config.js';
import { QFormerError } from '../errors.js';
import { Embedding } from '../nn/embedding.js';
import { StackedLinear } from '../nn/linear.js';
import { LayerNorm } from '../nn/norm.js';
import type { Activations, ParameterSource } from '../nn/parameter.js';
import { runLayers } from '../nn/sequences.js';
import { ops, scope, Tensor } from '../tensor/index.js';
import { QFormerLayer, type ImageKeys } from './qformer-layer.js';
import { QFormerLayout } from './qformer-layout.js';

/** Who sees whom in self-attention: two separate passes in one (itc), text after queries (itg), everybody (itm). */
export type QFormerMask = 'itc' | 'itg' | 'itm';

/** One packed batch. Without queries it is a text-only pass; without text it is the plain BLIP-2 one. */
export interface QFormerInput {
  /** [num_query, hidden] f32, the same for every sequence */
  queries?: Tensor;
  /** `prefix` of the queries, where it is known: spares its computation in a batch without text. */
  prefix?: Tensor;
  /** [images · image_tokens, encoder_hidden]; needed with queries */
  features?: Tensor;
  /** Which image each sequence reads; without it there is one image per sequence, in order. */
  images?: readonly number[];
  /** number of sequences */
  batch: number;
  /** Q-Former token ids of each sequence, any lengths */
  text?: readonly (readonly number[])[];
  /** Default 'itm'. */
  mask?: QFormerMask;
}

/** The last layer's rows: queries [batch · num_query, hidden], text [text tokens, hidden], each where there are any. */
export interface QFormerOutput {
  queries: Tensor | undefined;
  text: Tensor | undefined;
}

/** A batch after the embeddings, ready for the layers; hidden: [rows, hidden], packed as `layout` says. */
export interface EmbeddedQFormerInput {
  hidden: Tensor;
  layout: QFormerLayout;
  /** Of each layer; undefined where it does not cross, or where there are no queries. */
  imageKeys: readonly (ImageKeys | undefined)[];
}

/** Where a checkpoint family keeps the embeddings: InstructBLIP inside the Q-Former, BLIP-2 its norm only. */
export type QFormerFamily = 'blip-2' | 'instructblip';

/** The Q-Former of either family; text only where the checkpoint has a text path. */
export class QFormer {
  readonly layers: readonly QFormerLayer[];
  readonly layernorm: LayerNorm;
  readonly wordEmbeddings: Embedding | undefined;
  readonly positionEmbeddings: Embedding | undefined;
  /** Keys and values of the image for every crossing layer: k, v of the first, k, v of the second, ... */
  readonly imageProjection: StackedLinear;
  readonly #activations: Activations;
  readonly #crossing: readonly number[];

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: QFormerConfig,
    family: QFormerFamily,
  ) {
    const { hiddenSize, numLayers, layerNormEps, useTextInput, crossAttentionFrequency, encoderHiddenSize } = config;
    this.#activations = source.activations;
    const inside = family === 'instructblip' ? `${prefix}.embeddings.` : `${prefix}.`;
    const tables = family === 'instructblip' ? inside : 'embeddings.';
    if (useTextInput) {
      this.wordEmbeddings = new Embedding(source, `${tables}word_embeddings`, hiddenSize);
      this.positionEmbeddings = new Embedding(source, `${tables}position_embeddings`, hiddenSize);
      source.ignore(`${tables}position_ids`);
    }
    this.layernorm = new LayerNorm(source, `${inside}layernorm`, hiddenSize, layerNormEps);
    this.layers = Array.from(
      { length: numLayers },
      (_, i) => new QFormerLayer(source, `${prefix}.encoder.layer.${i}`, config, i % crossAttentionFrequency === 0),
    );
    this.#crossing = this.layers.flatMap(({ crossattention }, i) => (crossattention === undefined ? [] : [i]));
    const projections = this.#crossing.flatMap((i) =>
      ['key', 'value'].map((name) => `${prefix}.encoder.layer.${i}.crossattention.attention.${name}`),
    );
    this.imageProjection = new StackedLinear(source, projections, encoderHiddenSize, hiddenSize);
  }

  /** Runs one packed batch; INVALID_ARGUMENT for text that the model cannot read, SHAPE for features that do not fit. */
  forward(input: QFormerInput): QFormerOutput {
    const { prefix, mask = 'itm' } = input;
    return scope(() => {
      const { hidden: embedded, layout, imageKeys } = this.embed(input);
      const begun = layout.isQueriesOnly ? prefix : undefined;
      const hidden = runLayers(embedded, this.layers, (layer, x, i) => {
        if (i > 0 || begun === undefined) return layer.forward(x, layout, imageKeys[i], mask);
        return layer.afterSelfAttention(ops.gatherRows(begun, layout.repeatedQueries()), layout, imageKeys[i]);
      });
      return { queries: layout.queriesOf(hidden), text: layout.textOf(hidden) };
    });
  }

  /**
   * What a pass without text does before it looks at the image: the queries' norm and the self-attention of layer 0, where
   * every mask lets all queries see each other. queries: [num_query, hidden] f32 → [num_query, hidden]
   */
  prefix(queries: Tensor): Tensor {
    return scope(() => {
      const layout = new QFormerLayout([0], queries.shape[0]!, queries.device);
      return this.layers[0]!.selfAttention(this.layernorm.forward(this.#asActivations(queries)), layout, 'itm');
    });
  }

  /** The input of layer 0: norm(queries, word + position of the text). Queries have neither word nor position. */
  embed({ queries, features, images, batch, text }: QFormerInput): EmbeddedQFormerInput {
    const device = queries?.device ?? this.layernorm.weight.tensor.device;
    this.#checkText(text, batch);
    const textLengths = text?.map((ids) => ids.length) ?? new Array<number>(batch).fill(0);
    if (queries === undefined && textLengths.every((length) => length === 0)) {
      throw new QFormerError('INVALID_ARGUMENT', 'Q-Former: there are neither queries nor text');
    }
    const layout = new QFormerLayout(textLengths, queries?.shape[0] ?? 0, device);
    const imageKeys = queries === undefined ? [] : this.#imageKeys(features, batch, images);
    const rows = layout.join(
      queries && ops.gatherRows(this.#asActivations(queries), layout.repeatedQueries()),
      text && this.#embedText(text, device),
    );
    return { hidden: this.layernorm.forward(rows), layout, imageKeys };
  }

  /** Keys and values by layer; an image that several sequences read is projected once. */
  #imageKeys(
    features: Tensor | undefined,
    batch: number,
    images: readonly number[] | undefined,
  ): (ImageKeys | undefined)[] {
    const { hiddenSize, numHeads } = this.config;
    const count = images === undefined ? batch : Math.max(...images) + 1;
    const projected = this.imageProjection.forward(this.#checkedFeatures(features, count));
    const all = images === undefined ? projected : repeatImages(projected, count, images);
    const heads = all.reshape([all.shape[0]!, 2 * this.#crossing.length * numHeads, hiddenSize / numHeads]);
    const part = (i: number) => heads.slice(1, i * numHeads, (i + 1) * numHeads);
    return this.layers.map((_, layer) => {
      const place = this.#crossing.indexOf(layer);
      return place < 0 ? undefined : { k: part(2 * place), v: part(2 * place + 1) };
    });
  }

  #asActivations(x: Tensor): Tensor {
    return x.dtype === this.#activations ? x : x.cast(this.#activations);
  }

  #embedText(text: readonly (readonly number[])[], device: string): Tensor {
    const ids = Int32Array.from(text.flat());
    const positions = Int32Array.from(text.flatMap((sequence) => sequence.map((_, i) => i)));
    const words = this.wordEmbeddings!.forward(Tensor.fromArray(ids, [ids.length], { device }));
    return ops.add(
      words,
      this.positionEmbeddings!.forward(Tensor.fromArray(positions, [positions.length], { device })),
    );
  }

  #checkedFeatures(features: Tensor | undefined, batch: number): Tensor {
    const rows = features?.shape[0] ?? 0;
    const { encoderHiddenSize } = this.config;
    if (rows === 0 || rows % batch !== 0 || features!.shape[1] !== encoderHiddenSize) {
      const got = features === undefined ? 'none' : `[${features.shape.join(', ')}]`;
      const want = `[${batch} · image tokens, ${encoderHiddenSize}]`;
      throw new QFormerError('SHAPE', `Q-Former: image features must be ${want}, got ${got}`);
    }
    return features!;
  }

  #checkText(text: readonly (readonly number[])[] | undefined, batch: number): void {
    if (text === undefined) return;
    if (this.wordEmbeddings === undefined || this.positionEmbeddings === undefined) {
      throw new QFormerError('INVALID_ARGUMENT', 'Q-Former: this checkpoint reads no text');
    }
    if (text.length !== batch) {
      throw new QFormerError(
        'INVALID_ARGUMENT',
        `Q-Former: ${batch} sequences need ${batch} texts, got ${text.length}`,
      );
    }
    const limit = this.positionEmbeddings.rows;
    for (const { length } of text) {
      if (length <= limit) continue;
      const message = `Q-Former: the text has ${length} tokens, at most ${limit} fit`;
      throw new QFormerError('INVALID_ARGUMENT', message, { tokens: length, limit });
    }
  }
}

/** x: [count · image_tokens, dim] → the rows of image `images[i]` for every i, [images.length · image_tokens, dim] */
function repeatImages(x: Tensor, count: number, images: readonly number[]): Tensor {
  const tokens = x.shape[0]! / count;
  const rows = Int32Array.from({ length: images.length * tokens }, (_, i) => {
    return images[Math.floor(i / tokens)]! * tokens + (i % tokens);
  });
  return ops.gatherRows(x, Tensor.fromArray(rows, [rows.length], { device: x.device }));
}
