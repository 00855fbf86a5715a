// BLIP-2's vision tower with random f32 weights as an ONNX file, its weights in a second one ("external data"): the graph that an
// export at opset 17 gives (MatMul and Add, LayerNormalization, Softmax, GELU by its error function), which onnxruntime
// fuses as it loads it. Fields by number: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto

import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import { product, randomValues } from '../random.js';
import { Message } from './protobuf.js';

const OPSET = 17;
const IR_VERSION = 8;
const FLOAT = 1;
const INT64 = 7;
const EXTERNAL = 1;
const ATTRIBUTE = { float: 1, int: 2, ints: 7 } as const;

/** Sizes as in a vision_config. */
export interface VisionSizes {
  hidden_size: number;
  intermediate_size: number;
  num_attention_heads: number;
  num_hidden_layers: number;
  image_size: number;
  patch_size: number;
  layer_norm_eps: number;
}

type Attributes = Record<string, number | number[] | { float: number }>;

/** Writes `path` and `path`.data: pixel_values [batch, 3, size, size] → last_hidden_state [batch, tokens, hidden]. */
export function writeVisionOnnx(path: string, sizes: VisionSizes): void {
  const fd = openSync(`${path}.data`, 'w');
  try {
    writeFileSync(path, new VisionGraph(fd, `${basename(path)}.data`, sizes).encode());
  } finally {
    closeSync(fd);
  }
}

class VisionGraph {
  readonly #graph = new Message();
  readonly #tokens: number;
  #offset = 0;
  #names = 0;

  constructor(
    private readonly fd: number,
    private readonly dataFile: string,
    private readonly sizes: VisionSizes,
  ) {
    this.#tokens = 1 + (sizes.image_size / sizes.patch_size) ** 2;
  }

  encode(): Buffer {
    const { image_size: size, hidden_size: hidden, num_hidden_layers: layers } = this.sizes;
    let x = this.#embed('pixel_values');
    for (let i = 0; i < layers; i++) x = this.#layer(x, `layers.${i}`);
    const last = this.#norm(x, 'post_layernorm');
    this.#graph.message(1, node('Identity', [last], 'last_hidden_state', {}));
    this.#graph.bytes(2, 'vision');
    this.#graph.message(11, valueInfo('pixel_values', ['batch', 3, size, size]));
    this.#graph.message(12, valueInfo('last_hidden_state', ['batch', this.#tokens, hidden]));
    const opset = new Message().bytes(1, '').int(2, OPSET);
    return new Message().int(1, IR_VERSION).message(7, this.#graph).message(8, opset).encode();
  }

  #embed(pixels: string): string {
    const { hidden_size: hidden, patch_size: patch } = this.sizes;
    const w = this.#weight('patch_embedding.weight', [hidden, 3, patch, patch]);
    const conv = this.#op('Conv', [pixels, w, this.#weight('patch_embedding.bias', [hidden])], {
      kernel_shape: [patch, patch],
      strides: [patch, patch],
    });
    const flat = this.#op('Reshape', [conv, this.#ints([0, hidden, this.#tokens - 1])]);
    const patches = this.#op('Transpose', [flat], { perm: [0, 2, 1] });
    const batch = this.#op('Shape', [pixels], { start: 0, end: 1 });
    const shape = this.#op('Concat', [batch, this.#ints([1, hidden])], { axis: 0 });
    const token = this.#op('Expand', [this.#weight('class_embedding', [1, 1, hidden]), shape]);
    const all = this.#op('Concat', [token, patches], { axis: 1 });
    return this.#op('Add', [all, this.#weight('position_embedding', [1, this.#tokens, hidden])]);
  }

  #layer(x: string, prefix: string): string {
    const attended = this.#attention(this.#norm(x, `${prefix}.layer_norm1`), `${prefix}.self_attn`);
    const middle = this.#op('Add', [x, attended]);
    const { hidden_size: hidden, intermediate_size: mlp } = this.sizes;
    const fc1 = this.#linear(this.#norm(middle, `${prefix}.layer_norm2`), `${prefix}.mlp.fc1`, hidden, mlp);
    const fc2 = this.#linear(this.#gelu(fc1), `${prefix}.mlp.fc2`, mlp, hidden);
    return this.#op('Add', [middle, fc2]);
  }

  #attention(x: string, prefix: string): string {
    const { hidden_size: hidden, num_attention_heads: heads } = this.sizes;
    const headDim = hidden / heads;
    const qkv = this.#linear(x, `${prefix}.qkv`, hidden, 3 * hidden);
    const split = this.#op('Reshape', [qkv, this.#ints([0, this.#tokens, 3, heads, headDim])]);
    const turned = this.#op('Transpose', [split], { perm: [2, 0, 3, 1, 4] });
    const [q, k, v] = [0, 1, 2].map((i) => this.#op('Gather', [turned, this.#scalar(i)], { axis: 0 }));
    const keys = this.#op('Transpose', [k!], { perm: [0, 1, 3, 2] });
    const scores = this.#op('MatMul', [q!, keys]);
    const scaled = this.#op('Mul', [scores, this.#float(headDim ** -0.5)]);
    const weights = this.#op('Softmax', [scaled], { axis: 3 });
    const mixed = this.#op('Transpose', [this.#op('MatMul', [weights, v!])], { perm: [0, 2, 1, 3] });
    const joined = this.#op('Reshape', [mixed, this.#ints([0, this.#tokens, hidden])]);
    return this.#linear(joined, `${prefix}.projection`, hidden, hidden);
  }

  #gelu(x: string): string {
    const erf = this.#op('Erf', [this.#op('Div', [x, this.#float(Math.SQRT2)])]);
    const gate = this.#op('Add', [erf, this.#float(1)]);
    return this.#op('Mul', [this.#op('Mul', [x, gate]), this.#float(0.5)]);
  }

  #linear(x: string, prefix: string, k: number, n: number): string {
    const product = this.#op('MatMul', [x, this.#weight(`${prefix}.weight`, [k, n])]);
    return this.#op('Add', [this.#weight(`${prefix}.bias`, [n]), product]);
  }

  #norm(x: string, prefix: string): string {
    const { hidden_size: hidden, layer_norm_eps: epsilon } = this.sizes;
    const [w, b] = [this.#weight(`${prefix}.weight`, [hidden]), this.#weight(`${prefix}.bias`, [hidden])];
    return this.#op('LayerNormalization', [x, w, b], { axis: 2, epsilon: { float: epsilon } });
  }

  #op(type: string, inputs: string[], attributes: Attributes = {}): string {
    const output = `${type.toLowerCase()}_${this.#names++}`;
    this.#graph.message(1, node(type, inputs, output, attributes));
    return output;
  }

  /** A random tensor at the end of the data file. */
  #weight(name: string, shape: number[]): string {
    const values = randomValues(product(shape), shape.length > 1 ? 1 / Math.sqrt(shape[0]!) : 0.05);
    const bytes = Buffer.from(values.buffer);
    writeSync(this.fd, bytes);
    const entry = (key: string, value: string) => new Message().bytes(1, key).bytes(2, value);
    const tensor = dims(shape).int(2, FLOAT).bytes(8, name).int(14, EXTERNAL);
    tensor.message(13, entry('location', this.dataFile));
    tensor.message(13, entry('offset', String(this.#offset))).message(13, entry('length', String(bytes.length)));
    this.#offset += bytes.length;
    this.#graph.message(5, tensor);
    return name;
  }

  #ints(values: number[]): string {
    return this.#constant([values.length], INT64, Buffer.from(BigInt64Array.from(values, BigInt).buffer));
  }
  #scalar(value: number): string {
    return this.#constant([], INT64, Buffer.from(BigInt64Array.of(BigInt(value)).buffer));
  }
  #float(value: number): string {
    return this.#constant([], FLOAT, Buffer.from(Float32Array.of(value).buffer));
  }
  #constant(shape: number[], type: number, bytes: Buffer): string {
    const name = `constant_${this.#names++}`;
    this.#graph.message(5, dims(shape).int(2, type).bytes(8, name).bytes(9, bytes));
    return name;
  }
}

function dims(shape: number[]): Message {
  const tensor = new Message();
  shape.forEach((extent) => tensor.int(1, extent));
  return tensor;
}

function node(type: string, inputs: string[], output: string, attributes: Attributes): Message {
  const message = new Message().bytes(3, output).bytes(4, type).bytes(2, output);
  inputs.forEach((input) => message.bytes(1, input));
  for (const [name, value] of Object.entries(attributes)) {
    const attribute = new Message().bytes(1, name);
    if (typeof value === 'number') attribute.int(3, value).int(20, ATTRIBUTE.int);
    else if (Array.isArray(value)) {
      value.forEach((one) => attribute.int(8, one));
      attribute.int(20, ATTRIBUTE.ints);
    } else attribute.float(2, value.float).int(20, ATTRIBUTE.float);
    message.message(5, attribute);
  }
  return message;
}

function valueInfo(name: string, shape: (number | string)[]): Message {
  const extents = new Message();
  for (const extent of shape) {
    const dim = new Message();
    extents.message(1, typeof extent === 'number' ? dim.int(1, extent) : dim.bytes(2, extent));
  }
  const type = new Message().message(1, new Message().int(1, FLOAT).message(2, extents));
  return new Message().bytes(1, name).message(2, type);
}
