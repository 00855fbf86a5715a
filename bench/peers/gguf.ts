// LLaMA models with random weights as llama.cpp reads them: GGUF version 3, weights as BF16, Q8_0 or Q4_0, norms f32, a
// tokenizer of made-up tokens. All matrices have the one type (llama.cpp's own quantiser keeps the output matrix of Q4_0 files in
// 6 bits, so that a token reads more there than here).
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks of 32 weights: an f16 scale, then 32 int8 (Q8_0) or
// 16 bytes of two 4-bit codes (Q4_0).

import { closeSync, openSync, writeSync } from 'node:fs';
import type { SyntheticText } from '../model/synthetic.js';
import { product, uniform } from '../random.js';

export type GgufWeights = 'BF16' | 'Q8_0' | 'Q4_0';

const ALIGNMENT = 32;
const BLOCK = 32;
/** Numbers of the format: general.file_type, tensor type, bytes of a block of `BLOCK` weights. */
const TYPES = {
  BF16: { file: 32, tensor: 30, blockBytes: 2 * BLOCK },
  Q8_0: { file: 7, tensor: 8, blockBytes: 2 + BLOCK },
  Q4_0: { file: 2, tensor: 2, blockBytes: 2 + BLOCK / 2 },
} as const;
const F32 = 0;
const VALUE = { u32: 4, i32: 5, f32: 6, string: 8, array: 9 } as const;
/** Of a token: what it stands for. */
const TOKEN = { normal: 1, unknown: 2, control: 3, byte: 6 } as const;
/** 2⁻¹⁰ as f16: keeps activations of a random model near 1. */
const SCALE_F16 = 0x1400;

interface GgufTensor {
  name: string;
  /** rows first; the file lists them last */
  shape: number[];
}

/** Bytes of the weights, norms included. */
export function ggufBytes(config: SyntheticText, weights: GgufWeights): number {
  return tensors(config).reduce((sum, tensor) => sum + bytesOf(tensor, weights), 0);
}

/** Writes the file `path`. */
export function writeGguf(path: string, config: SyntheticText, weights: GgufWeights): void {
  const fd = openSync(path, 'w');
  try {
    const head = header(config, weights);
    writeSync(fd, padded(head));
    for (const tensor of tensors(config)) writeTensor(fd, tensor, weights);
  } finally {
    closeSync(fd);
  }
}

function tensors(config: SyntheticText): GgufTensor[] {
  const { hidden_size: hidden, intermediate_size: mlp, num_hidden_layers: layers, vocab_size: vocab } = config;
  const kv = (hidden / config.num_attention_heads) * config.num_key_value_heads;
  const layer = (i: number): GgufTensor[] =>
    Object.entries({
      attn_norm: [hidden],
      attn_q: [hidden, hidden],
      attn_k: [kv, hidden],
      attn_v: [kv, hidden],
      attn_output: [hidden, hidden],
      ffn_norm: [hidden],
      ffn_gate: [mlp, hidden],
      ffn_up: [mlp, hidden],
      ffn_down: [hidden, mlp],
    }).map(([name, shape]) => ({ name: `blk.${i}.${name}.weight`, shape }));
  return [
    { name: 'token_embd.weight', shape: [vocab, hidden] },
    ...Array.from({ length: layers }, (_, i) => layer(i)).flat(),
    { name: 'output_norm.weight', shape: [hidden] },
    { name: 'output.weight', shape: [vocab, hidden] },
  ];
}

function bytesOf({ shape }: GgufTensor, weights: GgufWeights): number {
  const count = product(shape);
  return shape.length === 1 ? 4 * count : (count / BLOCK) * TYPES[weights].blockBytes;
}

function header(config: SyntheticText, weights: GgufWeights): Buffer {
  const bytes = new Bytes();
  const all = tensors(config);
  const entries = metadata(config, weights);
  bytes.raw(Buffer.from('GGUF')).u32(3).u64(all.length).u64(entries.length);
  for (const write of entries) write(bytes);
  let offset = 0;
  for (const tensor of all) {
    const dims = [...tensor.shape].reverse();
    bytes.string(tensor.name).u32(dims.length);
    dims.forEach((extent) => bytes.u64(extent));
    bytes.u32(dims.length === 1 ? F32 : TYPES[weights].tensor).u64(offset);
    offset += align(bytesOf(tensor, weights));
  }
  return bytes.buffer();
}

type Entry = (bytes: Bytes) => void;

function metadata(config: SyntheticText, weights: GgufWeights): Entry[] {
  const key = (name: string, type: number, write: Entry): Entry => {
    return (bytes) => write(bytes.string(name).u32(type));
  };
  const text = (name: string, value: string) => key(name, VALUE.string, (bytes) => bytes.string(value));
  const count = (name: string, value: number) => key(name, VALUE.u32, (bytes) => bytes.u32(value));
  const number = (name: string, value: number) => key(name, VALUE.f32, (bytes) => bytes.f32(value));
  const array = <T>(name: string, type: number, values: T[], write: (bytes: Bytes, value: T) => void) =>
    key(name, VALUE.array, (bytes) => {
      bytes.u32(type).u64(values.length);
      values.forEach((value) => write(bytes, value));
    });
  const vocabulary = madeUpTokens(config.vocab_size);
  return [
    text('general.architecture', 'llama'),
    text('general.name', 'random weights'),
    count('general.file_type', TYPES[weights].file),
    count('general.alignment', ALIGNMENT),
    count('llama.block_count', config.num_hidden_layers),
    count('llama.context_length', config.max_position_embeddings),
    count('llama.embedding_length', config.hidden_size),
    count('llama.feed_forward_length', config.intermediate_size),
    count('llama.attention.head_count', config.num_attention_heads),
    count('llama.attention.head_count_kv', config.num_key_value_heads),
    count('llama.rope.dimension_count', config.hidden_size / config.num_attention_heads),
    count('llama.vocab_size', config.vocab_size),
    number('llama.rope.freq_base', config.rope_theta),
    number('llama.attention.layer_norm_rms_epsilon', config.rms_norm_eps),
    text('tokenizer.ggml.model', 'llama'),
    array('tokenizer.ggml.tokens', VALUE.string, vocabulary, (bytes, { text }) => bytes.string(text)),
    array('tokenizer.ggml.scores', VALUE.f32, vocabulary, (bytes, _) => bytes.f32(0)),
    array('tokenizer.ggml.token_type', VALUE.i32, vocabulary, (bytes, { type }) => bytes.u32(type)),
    count('tokenizer.ggml.bos_token_id', config.bos_token_id),
    count('tokenizer.ggml.eos_token_id', config.eos_token_id),
    count('tokenizer.ggml.unknown_token_id', 0),
  ];
}

function madeUpTokens(count: number): { text: string; type: number }[] {
  const special = [
    { text: '<unk>', type: TOKEN.unknown },
    { text: '<s>', type: TOKEN.control },
    { text: '</s>', type: TOKEN.control },
  ];
  const hex = (byte: number) => byte.toString(16).toUpperCase().padStart(2, '0');
  const bytes = Array.from({ length: 256 }, (_, i) => ({ text: `<0x${hex(i)}>`, type: TOKEN.byte }));
  const known = [...special, ...bytes];
  const rest = Array.from({ length: count - known.length }, (_, i) => ({ text: `word${i}`, type: TOKEN.normal }));
  return [...known, ...rest];
}

const POOL_BLOCKS = 1 << 15;

// Matrices repeat a pool of blocks: speed does not depend on the values.
function writeTensor(fd: number, tensor: GgufTensor, weights: GgufWeights): void {
  const total = bytesOf(tensor, weights);
  if (tensor.shape.length === 1) {
    const ones = new Float32Array(tensor.shape[0]!).fill(1);
    writeSync(fd, padded(Buffer.from(ones.buffer)));
    return;
  }
  const pool = poolOf(weights, tensor.shape[1]!);
  for (let at = 0; at < total; at += pool.length) {
    writeSync(fd, pool.subarray(0, Math.min(pool.length, total - at)));
  }
  writeSync(fd, Buffer.alloc(align(total) - total));
}

const pools = new Map<string, Buffer>();

function poolOf(weights: GgufWeights, columns: number): Buffer {
  const key = `${weights} ${columns}`;
  const pool = pools.get(key) ?? makePool(weights, 1 / Math.sqrt(columns));
  pools.set(key, pool);
  return pool;
}

function makePool(weights: GgufWeights, scale: number): Buffer {
  const { blockBytes } = TYPES[weights];
  const pool = Buffer.alloc(POOL_BLOCKS * blockBytes);
  if (weights === 'BF16') {
    const values = Float32Array.from({ length: POOL_BLOCKS * BLOCK }, () => scale * uniform());
    new Uint32Array(values.buffer).forEach((bits, i) => pool.writeUInt16LE(bits >>> 16, 2 * i));
    return pool;
  }
  for (let at = 0; at < pool.length; at++) pool[at] = Math.floor(128 * (1 + uniform()));
  for (let at = 0; at < pool.length; at += blockBytes) pool.writeUInt16LE(SCALE_F16, at);
  return pool;
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

function padded(buffer: Buffer): Buffer {
  return Buffer.concat([buffer, Buffer.alloc(align(buffer.length) - buffer.length)]);
}

/** Little-endian fields one after the other. */
class Bytes {
  readonly #parts: Buffer[] = [];

  raw(part: Buffer): this {
    this.#parts.push(part);
    return this;
  }
  u32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    return this.raw(part);
  }
  u64(value: number): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    return this.raw(part);
  }
  f32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeFloatLE(value);
    return this.raw(part);
  }
  string(value: string): this {
    const text = Buffer.from(value);
    return this.u64(text.length).raw(text);
  }
  buffer(): Buffer {
    return Buffer.concat(this.#parts);
  }
}
