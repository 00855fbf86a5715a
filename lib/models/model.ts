// What the engine knows of a model: the two interfaces every architecture fills, and the tensors of one batch.
// Nothing about a batch is global; a forward pass gets all of it in BatchInputs, so one definition serves prefill,
// chunked prefill and decode.

import type { ModelConfig } from '../io/config.js';
import type { Tensor } from '../tensor/index.js';

/** Paged keys and values: per layer k, v: [blocks, block_size, num_kv_heads, head_dim]. */
export interface KvCache {
  layers: readonly { k: Tensor; v: Tensor }[];
  /** tokens per block */
  blockSize: number;
}

/** The facts of one packed batch of b sequences with t new tokens. */
export interface BatchInputs {
  /** [t] i32: position of each new token in its sequence */
  positions: Tensor;
  /** [b + 1] i32: where each sequence's new tokens begin */
  cuSeqlensQ: Tensor;
  /** [t] i32: cache slot (block · block_size + offset) of each new token */
  slotMapping: Tensor;
  /** [b, max_blocks] i32: the cache blocks of each sequence, in order */
  blockTable: Tensor;
  /** [b] i32: tokens of each sequence in the cache, the new ones included */
  contextLens: Tensor;
  kvCache: KvCache;
  /** What cross-attention of an encoder–decoder model reads; absent elsewhere. */
  cross?: CrossInputs;
}

/**
 * The encoder's keys and values as each new token of a batch sees them: all of them, so that every token is a sequence of its
 * own to paged attention, which is causal.
 */
export interface CrossInputs {
  /** [t + 1] i32: 0, 1, … t */
  cuSeqlensQ: Tensor;
  /** [t, max_blocks] i32: the blocks that `encode` wrote for the token's sequence */
  blockTable: Tensor;
  /** [t] i32: tokens that the encoder read */
  contextLens: Tensor;
}

/** The encoder's part of a step: t tokens of b packed sequences, each whole. */
export interface EncoderInputs {
  /** [b + 1] i32 */
  cuSeqlens: Tensor;
  /** [t] i32: cache slot of each token's keys and values for cross-attention */
  slotMapping: Tensor;
  kvCache: KvCache;
}

/** A causal language model over a paged cache. Its hidden rows are of the activation dtype, f32 unless a GPU computes in 16 bits. */
export interface LanguageModel {
  readonly numLayers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly hiddenSize: number;
  /** rows of the stored embedding table; known once the model is built */
  readonly vocabSize: number;
  /** longest sequence the positions reach, in tokens */
  readonly maxPositions: number;
  /** ids: [t] i32 → [t, hidden] */
  embed(ids: Tensor): Tensor;
  /**
   * Encoder–decoder models only: reads whole prompts and writes to the cache what cross-attention needs of them. The decoder then
   * starts from its start token. inputsEmbeds: [t, hidden], image rows in place
   */
  encode?(inputsEmbeds: Tensor, inputs: EncoderInputs): void;
  /** inputsEmbeds: [t, hidden] → [t, hidden] after the final norm; writes the new keys and values to the cache */
  forward(inputsEmbeds: Tensor, batch: BatchInputs): Tensor;
  /** hidden: [b, hidden] → [b, vocab] f32 */
  logits(hidden: Tensor): Tensor;
}

/** Options of `encodeImage`. */
export interface EncodeImageOptions {
  /** Accept images of another size than the model's by interpolating its position table. Default false. */
  interpolate?: boolean;
}

/** A model as the engine runs it; a text-only one has no image functions. */
export interface VisionLanguageModel {
  readonly config: ModelConfig;
  readonly languageModel: LanguageModel;
  /** pixelValues: [b, 3, height, width] f32 → [b · image_tokens, vision_hidden] */
  encodeImage?(pixelValues: Tensor, options?: EncodeImageOptions): Tensor;
  /** features: [batch · image_tokens, vision_hidden], one list of Q-Former ids per image → [batch · num_query, hidden] */
  imageTokens?(features: Tensor, batch: number, instructionIds?: readonly (readonly number[])[]): Tensor;
  /** Frees the weights; the model cannot be used afterwards. */
  dispose(): void;
}
