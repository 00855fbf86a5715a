// The rows: language model, linear layers, vision tower, Q-Former, image preparation.

import { l3Bytes } from '../machine.js';
import { product } from '../random.js';
import { ggufBytes } from './gguf.js';
import type { Bar, Comparison, Rival, Task } from './comparison.js';
import { LLAMA_1B, modelPath, VIT_G } from './model-files.js';
import type { Peer, Weights } from './protocol.js';

const PROMPT = 16;
const DECODED = 32;
const PREFILLED = 256;
const IMAGE_SIZE = 224;
const QUERIES = 32;

/** All rows, smaller jobs first. */
export function comparisons(smoke: boolean): Comparison[] {
  return [
    imageComparison(),
    ...linearComparisons(smoke ? 1 : 3 * l3Bytes()),
    ...llamaComparisons(),
    qformerComparison(),
    ...visionComparisons(),
  ];
}

const bar = (peer: Peer, weights: Weights, atLeast: number): Bar => ({ against: { peer, weights }, atLeast });

function llamaComparisons(): Comparison[] {
  const pairs = [
    ['bf16', 'BF16', 1],
    ['int8', 'Q8_0', 1.2],
    ['int4', 'Q4_0', 1.2],
  ] as const;
  const decode = pairs.map(([weights, gguf, atLeast]) => decodeComparison(weights, gguf, atLeast));
  const prefill = [...pairs, ['w8a8', 'Q8_0'] as const, ['w4a8', 'Q4_0'] as const];
  return [...decode, ...prefill.map(([weights, gguf]) => prefillComparison(weights, gguf))];
}

/** Multiply-adds of one token, and the bytes that it reads at least: everything but the embedding table. */
const LLAMA_WEIGHTS = ggufBytes(LLAMA_1B, 'BF16') / 2 - LLAMA_1B.vocab_size * LLAMA_1B.hidden_size;
/** How rows call weights that have no name of one word. */
const TITLES: Partial<Record<Weights, string>> = {
  w8a8: 'int8 weights and activations',
  w4a8: 'int4 weights, int8 activations',
};
/** Bits of a weight of ours, the scales of its group included. */
const BITS: Partial<Record<Weights, number>> = { bf16: 16, int8: 8.25, int4: 4.25 };

function decodeComparison(
  weights: 'bf16' | 'int8' | 'int4',
  gguf: 'BF16' | 'Q8_0' | 'Q4_0',
  atLeast: number,
): Comparison {
  const task = { kind: 'decode', prompt: PROMPT, tokens: DECODED } as const;
  const file = `llama-1b-${gguf}.gguf` as const;
  const rivals: Rival[] = [
    { peer: 'node-llama-cpp', weights: gguf, task: { ...task, weights: gguf, model: modelPath(file) } },
  ];
  if (weights === 'bf16') {
    const [tokens, model] = [DECODED / 8, modelPath('llama-1b')];
    rivals.push({ peer: 'torch', weights, task: { ...task, tokens, weights, model }, part: tokens / DECODED });
  }
  return {
    group: 'LLaMA 1.1B',
    name: `decode, ${weights}, ${DECODED} tokens after ${PROMPT}`,
    unit: 'tokens/s',
    amount: DECODED,
    bytes: (DECODED * LLAMA_WEIGHTS * BITS[weights]!) / 8,
    memory: 'dram',
    ours: { ...task, weights, model: modelPath('llama-1b') },
    rivals,
    bars: [bar('node-llama-cpp', gguf, atLeast)],
    files: ['llama-1b', file],
  };
}

function prefillComparison(
  weights: 'bf16' | 'int8' | 'int4' | 'w8a8' | 'w4a8',
  gguf: 'BF16' | 'Q8_0' | 'Q4_0',
): Comparison {
  const task = { kind: 'prefill', tokens: PREFILLED } as const;
  // the bar is the best peer of any type: bf16 meets all of them, the others their like, whose activations have 8 bits too
  const all = weights === 'bf16' ? (['BF16', 'Q8_0', 'Q4_0'] as const) : [gguf];
  const files = all.map((type) => `llama-1b-${type}.gguf` as const);
  const llama = all.map((type, i): Rival => {
    return { peer: 'node-llama-cpp', weights: type, task: { ...task, weights: type, model: modelPath(files[i]!) } };
  });
  const torch: Rival = {
    peer: 'torch',
    weights: 'bf16',
    task: { ...task, weights: 'bf16', model: modelPath('llama-1b') },
  };
  return {
    group: 'LLaMA 1.1B',
    name: `prefill of ${PREFILLED} tokens, ${TITLES[weights] ?? weights}`,
    unit: 'tokens/s',
    amount: PREFILLED,
    // quantised weights are multiplied in whatever type a kernel likes, so no one peak is theirs
    ...(weights === 'bf16' && { flops: 2 * PREFILLED * LLAMA_WEIGHTS, compute: 'bf16' }),
    ours: { ...task, weights, model: modelPath('llama-1b') },
    rivals: [...llama, torch],
    bars: [{ against: 'best', atLeast: 1.2 }],
    files: ['llama-1b', ...files],
  };
}

const SHAPES: readonly (readonly [n: number, k: number, of: string])[] = [
  [6144, 1408, 'ViT-g fc1'],
  [1408, 1408, 'ViT-g projection'],
  [4096, 4096, 'LLaMA-7B q'],
  [11008, 4096, 'LLaMA-7B gate'],
  [768, 768, 'Q-Former'],
];

// `rotation`: bytes of weights that a row goes through, several times the last-level cache so that each comes from DRAM as in a model.
function linearComparisons(rotation: number): Comparison[] {
  const rows = SHAPES.flatMap(([n, k, of]) => [
    linearComparison([8, n, k], of, 'bf16', bar('torch', 'bf16', 1.1), rotation),
    linearComparison([32, n, k], of, 'bf16', bar('torch', 'bf16', 1.1), rotation),
    linearComparison([257, n, k], of, 'bf16', { against: 'limit', atLeast: 0.9 }, rotation),
    linearComparison([257, n, k], of, 'f32', { against: 'limit', atLeast: 0.9 }, rotation),
  ]);
  const vector = (['bf16', 'int8', 'int4'] as const).map((weights) =>
    linearComparison([1, 4096, 4096], 'LLaMA-7B q', weights, { against: 'limit', atLeast: 0.85 }, rotation),
  );
  return [...rows, ...vector];
}

function linearComparison(
  [m, n, k]: readonly [number, number, number],
  of: string,
  weights: 'f32' | 'bf16' | 'int8' | 'int4',
  reach: Bar,
  rotation: number,
): Comparison {
  const bytes = (n * k * (BITS[weights] ?? 32)) / 8;
  const copies = Math.max(2, Math.ceil(rotation / bytes));
  const task: Task = { kind: 'linear', weights, m, n, k, copies };
  const dense = weights === 'f32' || weights === 'bf16';
  return {
    group: m === 1 ? 'linear, one row' : 'linear',
    name: `M=${m} N=${n} K=${k} ${weights} (${of})`,
    unit: m === 1 ? 'GB/s' : 'GFLOP/s',
    amount: (m === 1 ? bytes : 2 * m * n * k) / 1e9,
    flops: 2 * m * n * k,
    bytes,
    compute: weights === 'bf16' ? 'bf16' : 'f32',
    memory: 'dram',
    ours: task,
    rivals: dense ? [{ peer: 'torch', weights, task }] : [],
    bars: [reach],
    files: [],
    effort: 0.25,
  };
}

function visionComparisons(): Comparison[] {
  return [1, 4].flatMap((batch) => [
    visionComparison(batch, 'bf16', [bar('torch', 'bf16', 1.3), bar('onnxruntime-node', 'f32', 2)]),
    visionComparison(batch, 'f32', [bar('onnxruntime-node', 'f32', 1.1)]),
    visionComparison(batch, 'w8a8', []),
  ]);
}

function visionComparison(batch: number, weights: 'f32' | 'bf16' | 'w8a8', bars: Bar[]): Comparison {
  const task = { kind: 'vision', weights, batch } as const;
  const torch: Rival = { peer: 'torch', weights: 'bf16', task: { ...task, weights: 'bf16', model: '' } };
  const onnx: Rival = {
    peer: 'onnxruntime-node',
    weights: 'f32',
    task: { ...task, weights: 'f32', model: modelPath('vit-g-onnx') },
  };
  const { hidden_size: d, intermediate_size: mlp, num_hidden_layers: layers, patch_size: patch } = VIT_G.vision_config;
  const tokens = 1 + (IMAGE_SIZE / patch) ** 2;
  const perLayer = 2 * tokens * (4 * d * d + 2 * d * mlp) + 4 * tokens * tokens * d;
  return {
    group: 'ViT-g, 224 px',
    name: `batch ${batch}, ${TITLES[weights] ?? weights}`,
    unit: 'ms',
    amount: 1,
    flops: batch * (layers * perLayer + 2 * (tokens - 1) * 3 * patch * patch * d),
    ...(weights !== 'w8a8' && { compute: weights }),
    ours: { ...task, model: modelPath('vit-g') },
    rivals: weights === 'f32' ? [onnx] : [torch, onnx],
    bars,
    files: ['vit-g', 'vit-g-onnx'],
    effort: 2,
  };
}

function qformerComparison(): Comparison {
  const task = { kind: 'qformer', weights: 'bf16', model: modelPath('vit-g') } as const;
  const {
    hidden_size: d,
    intermediate_size: mlp,
    num_hidden_layers: layers,
    encoder_hidden_size: vision,
  } = VIT_G.qformer_config;
  const patches = 1 + (IMAGE_SIZE / VIT_G.vision_config.patch_size) ** 2;
  const self = 2 * QUERIES * (4 * d * d + 2 * d * mlp) + 4 * QUERIES * QUERIES * d;
  const cross = 2 * QUERIES * 2 * d * d + 2 * patches * product([2, vision, d]) + 4 * QUERIES * patches * d;
  return {
    group: 'Q-Former',
    name: `${QUERIES} queries over ${patches} patches, ${layers} layers and projection, bf16`,
    unit: 'ms',
    amount: 1,
    flops: layers * self + (layers / 2) * cross,
    compute: 'bf16',
    ours: task,
    rivals: [{ peer: 'torch', weights: 'bf16', task }],
    bars: [bar('torch', 'bf16', 1.3)],
    files: ['vit-g'],
  };
}

function imageComparison(): Comparison {
  const task = { kind: 'image', file: modelPath('photo.jpg'), size: IMAGE_SIZE } as const;
  return {
    group: 'image',
    name: `JPEG 1500×1000 → ${IMAGE_SIZE} px, normalised`,
    unit: 'ms',
    amount: 1,
    ours: task,
    rivals: [
      { peer: 'Pillow', weights: 'f32', task },
      { peer: 'sharp', weights: 'f32', task },
    ],
    bars: [bar('Pillow', 'f32', 1.5)],
    files: ['photo.jpg'],
    effort: 0.5,
  };
}
