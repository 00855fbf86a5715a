// A checkpoint folder with random weights, so that the model part says something about real sizes: a ViT of ViT-g's width, a
// Q-Former of BERT's, a language model of LLaMA-1.1B's, each cut to a few layers; or any other sizes. bf16; tensor names and
// shapes are those that the models declare. The tokenizers are the demonstration model's; ids beyond them cannot be generated
// (see writeRandom).

import { closeSync, cpSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readModelConfig } from '../../lib/io/config.js';
import type { ModelConfig } from '../../lib/io/config.js';
import { Blip2 } from '../../lib/models/blip2.js';
import { Llama } from '../../lib/models/llama.js';
import { Parameter, type ParameterSource } from '../../lib/nn/parameter.js';
import { product, uniform } from '../random.js';

/** Ids of the demonstration model's tokenizer. */
const TOKENIZER_IDS = 2560;

/** The part of a config.json that sizes are taken from. */
export type SyntheticConfig = typeof SMALL;
export type SyntheticText = SyntheticConfig['text_config'];

/** Real widths, few layers. */
export const SMALL = {
  architectures: ['InstructBlipForConditionalGeneration'],
  model_type: 'instructblip',
  image_token_index: 4,
  num_query_tokens: 32,
  tie_word_embeddings: false,
  vision_config: {
    model_type: 'instructblip_vision_model',
    hidden_size: 1408,
    intermediate_size: 6144,
    num_attention_heads: 16,
    num_hidden_layers: 4,
    image_size: 224,
    patch_size: 14,
    hidden_act: 'gelu',
    layer_norm_eps: 1e-6,
    qkv_bias: true,
  },
  qformer_config: {
    model_type: 'instructblip_qformer',
    hidden_size: 768,
    intermediate_size: 3072,
    num_attention_heads: 12,
    num_hidden_layers: 4,
    cross_attention_frequency: 2,
    encoder_hidden_size: 1408,
    max_position_embeddings: 512,
    vocab_size: 2048,
    hidden_act: 'gelu',
    layer_norm_eps: 1e-12,
    pad_token_id: 0,
  },
  text_config: {
    model_type: 'llama',
    hidden_size: 2048,
    intermediate_size: 5632,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    num_hidden_layers: 4,
    max_position_embeddings: 2048,
    vocab_size: 32000,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    hidden_act: 'silu',
    tie_word_embeddings: false,
    bos_token_id: 1,
    eos_token_id: 2,
    pad_token_id: 3,
  },
};

/** The true sizes of InstructBLIP over Vicuna-7B, as on the hub (with its padded embeddings). */
export const VICUNA_7B: SyntheticConfig = {
  ...SMALL,
  vision_config: { ...SMALL.vision_config, num_hidden_layers: 39 },
  qformer_config: { ...SMALL.qformer_config, num_hidden_layers: 12, vocab_size: 30523 },
  text_config: {
    ...SMALL.text_config,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_key_value_heads: 32,
    num_hidden_layers: 32,
    vocab_size: 32064,
  },
};

/** Writes the checkpoint to a temporary folder beside which nothing else is kept; `remove` deletes it. */
export function writeSyntheticModel(
  tokenizers: string,
  { config = SMALL, shards = 1 }: { config?: SyntheticConfig; shards?: number } = {},
): { dir: string; remove: () => void } {
  const dir = mkdtempSync(join(tmpdir(), 'qformer-bench-'));
  const remove = () => rmSync(dir, { recursive: true, force: true });
  try {
    writeSyntheticCheckpoint(dir, tokenizers, config, shards);
    return { dir, remove };
  } catch (error) {
    remove();
    throw error;
  }
}

/** Writes a checkpoint, or the language model alone where `config` is that of one, into the folder `dir`. */
export function writeSyntheticCheckpoint(
  dir: string,
  tokenizers: string,
  config: SyntheticConfig | SyntheticText,
  shards = 1,
): void {
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'qformer_tokenizer', 'generation_config.json']) {
    cpSync(join(tokenizers, name), join(dir, name), { recursive: true });
  }
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
  if ('vision_config' in config) {
    const size = { height: config.vision_config.image_size, width: config.vision_config.image_size };
    writeFileSync(join(dir, 'preprocessor_config.json'), JSON.stringify({ do_resize: true, size, resample: 3 }));
  }
  writeShards(dir, declaredTensors(readModelConfig(join(dir, 'config.json')), config), shards);
}

/** Collects what modules declare instead of loading it. */
class Declarations implements ParameterSource {
  readonly math = 'f32';
  readonly activations = 'f32';
  readonly shapes = new Map<string, number[]>();

  constructor(private readonly config: SyntheticConfig | SyntheticText) {}

  matrix(name: string, shape: readonly number[]): Parameter {
    const rows = this.#rowsOf(name);
    const known = shape.map((extent) => (extent < 0 ? rows : extent));
    this.shapes.set(name, known);
    return new Parameter(name, known);
  }
  #rowsOf(name: string): number {
    if (!('text_config' in this.config)) return this.config.vocab_size;
    const { qformer_config: qformer, text_config: text } = this.config;
    if (!name.startsWith('qformer.')) return text.vocab_size;
    return name.includes('position_embeddings') ? qformer.max_position_embeddings : qformer.vocab_size;
  }
  vector(name: string, shape: readonly number[]): Parameter {
    return this.matrix(name, shape);
  }
  constant(name: string, _values: Float32Array, shape: readonly number[]): Parameter {
    return new Parameter(name, shape);
  }
  stackedMatrix(names: readonly string[], shape: readonly number[]): Parameter {
    return names.map((name) => this.matrix(name, shape))[0]!;
  }
  stackedVector(names: readonly string[], shape: readonly number[]): Parameter {
    return this.stackedMatrix(names, shape);
  }
  derived(name: string, shape: readonly number[]): Parameter {
    return new Parameter(name, shape);
  }
  ignore(): void {}
}

function declaredTensors(config: ModelConfig, sizes: SyntheticConfig | SyntheticText): Map<string, number[]> {
  const source = new Declarations(sizes);
  if (config.text.modelType !== 'llama') throw new Error(`no synthetic ${config.text.modelType}`);
  if (config.vision === undefined) new Llama(source, '', config.text);
  else new Blip2(source, config, new Llama(source, 'language_model.', config.text), () => {});
  return source.shapes;
}

/** One file, or shards of about equal size with an index, as the hub names them. */
function writeShards(dir: string, shapes: Map<string, number[]>, shards: number): void {
  if (shards === 1) return writeSafetensors(join(dir, 'model.safetensors'), shapes);
  const bytes = (shape: readonly number[]): number => 2 * product(shape);
  const total = [...shapes.values()].reduce((sum, shape) => sum + bytes(shape), 0);
  const parts = Array.from({ length: shards }, () => new Map<string, number[]>());
  let before = 0;
  for (const [name, shape] of shapes) {
    parts[Math.min(shards - 1, Math.floor((before / total) * shards))]!.set(name, shape);
    before += bytes(shape);
  }
  const weightMap: Record<string, string> = {};
  parts.forEach((part, i) => {
    const number = (n: number): string => String(n).padStart(5, '0');
    const file = `model-${number(i + 1)}-of-${number(shards)}.safetensors`;
    for (const name of part.keys()) weightMap[name] = file;
    writeSafetensors(join(dir, file), part);
  });
  const index = { metadata: { total_size: total }, weight_map: weightMap };
  writeFileSync(join(dir, 'model.safetensors.index.json'), JSON.stringify(index));
}

function writeSafetensors(file: string, shapes: Map<string, number[]>): void {
  let end = 0;
  const header: Record<string, unknown> = {};
  for (const [name, shape] of shapes) {
    const begin = end;
    end += 2 * product(shape);
    header[name] = { dtype: 'BF16', shape, data_offsets: [begin, end] };
  }
  const text = JSON.stringify(header);
  // data begin at a multiple of 64 bytes, so that they can be used in place
  const json = Buffer.from(text.padEnd(Math.ceil((8 + text.length) / 64) * 64 - 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const fd = openSync(file, 'w');
  try {
    writeSync(fd, length);
    writeSync(fd, json);
    for (const [name, shape] of shapes) writeRandom(fd, name, shape);
  } finally {
    closeSync(fd);
  }
}

const POOL = Float32Array.from({ length: 1 << 16 }, uniform);

// Weights of norms are near 1; rows of the head past the tokenizer's ids are 0, so that their logits never win.
function writeRandom(fd: number, name: string, shape: readonly number[]): void {
  const norm = name.includes('norm') && name.endsWith('weight');
  const scale = shape.length > 1 ? 1 / Math.sqrt(product(shape.slice(1))) : 0.05;
  const values = toBfloat16(POOL.map((value) => (norm ? 1 : 0) + value * scale));
  const count = product(shape);
  const live = name.endsWith('lm_head.weight') ? TOKENIZER_IDS * shape[1]! : count;
  for (let at = 0; at < live; at += values.length)
    writeSync(fd, values.subarray(0, Math.min(values.length, live - at)));
  if (live < count) writeSync(fd, new Uint16Array(count - live));
}

function toBfloat16(values: Float32Array): Uint16Array {
  return Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16);
}
