// EVA ViT, the vision tower of BLIP-2 (Fang et al. 2022, EVA; sizes in the checkpoint's vision_config): patch embedding,
// class token, learned positions, pre-norm blocks with one fused qkv product, and a norm over all tokens at the end.
// Images of another size than the model's are read through a bicubically resampled position table.

import type { VisionConfig } from '../io/config.js';
import { QFormerError } from '../errors.js';
import { Linear } from '../nn/linear.js';
import { LayerNorm } from '../nn/norm.js';
import type { Activations, Parameter, ParameterSource } from '../nn/parameter.js';
import { cuSeqlens, runLayers } from '../nn/sequences.js';
import { keep, ops, scope, Tensor } from '../tensor/index.js';
import type { EncodeImageOptions } from './model.js';
import { resamplePositions } from './positions.js';

/** The vision tower: pixels to one feature row per patch, plus one for the class token. */
export class VisionTransformer {
  readonly embeddings: VisionEmbeddings;
  readonly layers: readonly VisionLayer[];
  readonly postLayernorm: LayerNorm;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: VisionConfig,
  ) {
    this.embeddings = new VisionEmbeddings(source, `${prefix}.embeddings`, config);
    this.layers = Array.from(
      { length: config.numLayers },
      (_, i) => new VisionLayer(source, `${prefix}.encoder.layers.${i}`, config),
    );
    this.postLayernorm = new LayerNorm(source, `${prefix}.post_layernorm`, config.hiddenSize, config.layerNormEps);
  }

  /** pixelValues: [b, 3, height, width] f32 → [b · (1 + patches), hidden]; SHAPE for a size the positions do not fit. */
  forward(pixelValues: Tensor, options: EncodeImageOptions = {}): Tensor {
    return scope(() => {
      const x = this.embeddings.forward(pixelValues, options);
      const cu = this.sequences(pixelValues.shape[0]!, x);
      return this.postLayernorm.forward(runLayers(x, this.layers, (layer, h) => layer.forward(h, cu)));
    });
  }

  /** cu_seqlens [batch + 1] of embedded images x: [batch · tokens, hidden]. */
  sequences(batch: number, x: Tensor): Tensor {
    return cuSeqlens(new Array<number>(batch).fill(x.shape[0]! / batch), x.device);
  }

  /** Frees the resampled position tables. */
  dispose(): void {
    this.embeddings.dispose();
  }
}

/** Patches, class token and positions. */
export class VisionEmbeddings {
  readonly classEmbedding: Parameter;
  readonly positionEmbedding: Parameter;
  readonly patchWeight: Parameter;
  readonly patchBias: Parameter;
  readonly #resampled = new Map<string, Tensor>();
  readonly #grid: number;
  readonly #activations: Activations;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: VisionConfig,
  ) {
    const { hiddenSize, numChannels, patchSize, imageSize } = config;
    this.#grid = Math.floor(imageSize / patchSize);
    this.#activations = source.activations;
    this.classEmbedding = source.vector(`${prefix}.class_embedding`, [1, 1, hiddenSize]);
    this.positionEmbedding = source.vector(`${prefix}.position_embedding`, [1, 1 + this.#grid ** 2, hiddenSize]);
    this.patchWeight = source.matrix(`${prefix}.patch_embedding.weight`, [
      hiddenSize,
      numChannels,
      patchSize,
      patchSize,
    ]);
    this.patchBias = source.vector(`${prefix}.patch_embedding.bias`, [hiddenSize]);
    source.ignore(`${prefix}.position_ids`);
  }

  /** pixelValues: [b, 3, height, width] f32 → [b · (1 + patches), hidden] */
  forward(pixelValues: Tensor, { interpolate = false }: EncodeImageOptions = {}): Tensor {
    const { hiddenSize, imageSize, patchSize } = this.config;
    const [, , height, width] = this.#checkedShape(pixelValues.shape);
    if (!interpolate && (height !== imageSize || width !== imageSize)) {
      const got = `${width}×${height}`;
      throw new QFormerError('SHAPE', `vision: images must be ${imageSize}×${imageSize} pixels, got ${got}`);
    }
    return ops.patchEmbedding(pixelValues, this.patchWeight.tensor, {
      bias: this.patchBias.tensor,
      classEmbedding: this.classEmbedding.tensor.reshape([hiddenSize]),
      positions: this.positions(Math.floor(height / patchSize), Math.floor(width / patchSize)),
      dtype: this.#activations,
    });
  }

  /** The position table for a grid of patches: [1 + rows · columns, hidden] f32, class row first. */
  positions(rows: number, columns: number): Tensor {
    const { hiddenSize } = this.config;
    const stored = this.positionEmbedding.tensor;
    if (rows === this.#grid && columns === this.#grid) return stored.reshape([1 + this.#grid ** 2, hiddenSize]);
    const key = `${rows}x${columns}`;
    let table = this.#resampled.get(key);
    if (table === undefined) {
      const values = resamplePositions(stored.toFloat32(), this.#grid, rows, columns, hiddenSize);
      table = keep(Tensor.fromArray(values, [1 + rows * columns, hiddenSize], { device: stored.device }));
      this.#resampled.set(key, table);
    }
    return table;
  }

  dispose(): void {
    for (const table of this.#resampled.values()) table.dispose();
    this.#resampled.clear();
  }

  #checkedShape(shape: readonly number[]): [number, number, number, number] {
    const { numChannels, patchSize } = this.config;
    const [batch = 0, channels = 0, height = 0, width = 0] = shape;
    if (shape.length !== 4 || channels !== numChannels || height < patchSize || width < patchSize) {
      const want = `[batch, ${numChannels}, height, width] of at least ${patchSize}×${patchSize} pixels`;
      throw new QFormerError('SHAPE', `vision: pixel values must be ${want}, got [${shape.join(', ')}]`);
    }
    return [batch, channels, height, width];
  }
}

/** One pre-norm block: x + proj(attention(norm1 x)), then x + fc2(act(fc1(norm2 x))). */
export class VisionLayer {
  readonly layerNorm1: LayerNorm;
  readonly layerNorm2: LayerNorm;
  readonly qkv: Linear;
  readonly projection: Linear;
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(
    source: ParameterSource,
    prefix: string,
    readonly config: VisionConfig,
  ) {
    const { hiddenSize, intermediateSize, layerNormEps, qkvBias } = config;
    this.layerNorm1 = new LayerNorm(source, `${prefix}.layer_norm1`, hiddenSize, layerNormEps);
    this.layerNorm2 = new LayerNorm(source, `${prefix}.layer_norm2`, hiddenSize, layerNormEps);
    this.qkv = new Linear(source, `${prefix}.self_attn.qkv`, hiddenSize, 3 * hiddenSize, qkvBias);
    this.projection = new Linear(source, `${prefix}.self_attn.projection`, hiddenSize, hiddenSize);
    this.fc1 = new Linear(source, `${prefix}.mlp.fc1`, hiddenSize, intermediateSize);
    this.fc2 = new Linear(source, `${prefix}.mlp.fc2`, intermediateSize, hiddenSize);
  }

  /** x: [tokens, hidden], cu: [batch + 1] i32 → [tokens, hidden] */
  forward(x: Tensor, cu: Tensor): Tensor {
    const attended = this.projection.forward(this.#attention(this.layerNorm1.forward(x), cu), { residual: x });
    const inner = this.fc1.forward(this.layerNorm2.forward(attended), { activation: this.config.hiddenAct });
    return this.fc2.forward(inner, { residual: attended });
  }

  #attention(x: Tensor, cu: Tensor): Tensor {
    const { hiddenSize, numHeads } = this.config;
    const headDim = hiddenSize / numHeads;
    const tokens = x.shape[0]!;
    const qkv = this.qkv.forward(x).reshape([tokens, 3, numHeads, headDim]);
    const heads = ops.attention(qkv.select(1, 0), qkv.select(1, 1), qkv.select(1, 2), {
      cuSeqlensQ: cu,
      cuSeqlensK: cu,
      scale: headDim ** -0.5,
      math: this.qkv.math,
    });
    return heads.reshape([tokens, hiddenSize]);
  }
}
