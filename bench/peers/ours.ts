// Our side of each comparison. Language models go through the package as users import it, worker and all; the vision tower, the
// Q-Former and the linear layers through the layers below, so that nothing but them is timed.

import { readFileSync } from 'node:fs';
import { loadImage } from '../../lib/io/image.js';
import { PixelBuffers } from '../../lib/io/pixel-buffers.js';
import type { LoadOptions } from '../../lib/index.js';
import { openCheckpoint } from '../../lib/io/checkpoint.js';
import { createModel } from '../../lib/models/registry.js';
import { Weights as ModelWeights } from '../../lib/models/weights.js';
import { keep, ops, scope, setThreads, Tensor } from '../../lib/tensor/index.js';
import { importPackage } from '../model/package.js';
import { randomTensor } from '../random.js';
import type { Job, Prepared, Weights } from './protocol.js';
import { promptIds, serve, timed, timedAsync } from './serve.js';

const CONTEXT = 1024;
const PATCH_ROWS = 257;
const NORM = {
  rescale: 1 / 255,
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
} as const;

async function prepare(job: Job): Promise<Prepared> {
  switch (job.kind) {
    case 'decode':
    case 'prefill':
      return prepareLanguageModel(job);
    case 'linear':
      return prepareLinear(job);
    case 'vision':
    case 'qformer':
      return prepareVision(job);
    case 'image':
      return prepareImage(job);
  }
}

async function prepareLanguageModel(job: Job & { kind: 'decode' | 'prefill' }): Promise<Prepared> {
  const { loadModel } = await importPackage();
  const { weights, threads } = job;
  // equal prompts must not be answered from memory
  const options = { device: 'cpu', threads, prefixCache: false, maxBatchSize: 1, kvCacheTokens: CONTEXT } as const;
  const model = await loadModel(job.model, { ...options, ...typesOf(weights) });
  let salt = 0;
  const generate = (prompt: number, maxNewTokens: number) =>
    model.generate(promptIds(prompt, salt++), { maxNewTokens, ignoreEos: true });
  const decode = async (prompt: number, tokens: number) => (await generate(prompt, tokens + 1)).timings.decodeMs;
  return {
    note: `weights ${Math.round(model.info.weightBytes / 1e6)} MB`,
    bytes: { weights: model.info.weightBytes, kvCache: model.info.kvCacheBytes },
    run: job.kind === 'decode' ? () => decode(job.prompt, job.tokens) : timedAsync(async () => generate(job.tokens, 1)),
    release: () => model.dispose(),
  };
}

/** What `weights` says as options of a load. What is not quantised, and attention, is bf16 beside quantised weights. */
function typesOf(weights: Weights): Pick<LoadOptions, 'dtype' | 'quantize' | 'quantizeActivations'> {
  if (weights === 'f32') return { dtype: 'f32' };
  if (weights === 'int8' || weights === 'int4') return { dtype: 'bf16', quantize: weights };
  const quantizeActivations = true;
  if (weights === 'w8a8') return { dtype: 'bf16', quantize: 'int8', quantizeActivations };
  if (weights === 'w4a8') return { dtype: 'bf16', quantize: 'int4', quantizeActivations };
  return { dtype: 'bf16' };
}

async function prepareLinear({ weights, m, n, k, copies, threads }: Job & { kind: 'linear' }): Promise<Prepared> {
  setThreads(threads);
  const x = randomTensor([m, k]);
  const make = weightMaker(weights, n, k);
  const all = Array.from({ length: copies }, make);
  let next = 0;
  return {
    run: timed(() => scope(() => void all[next++ % copies]!.multiply(x))),
    release: () => [x, ...all.flatMap((weight) => weight.tensors)].forEach((tensor) => tensor.dispose()),
  };
}

function weightMaker(
  weights: Weights,
  n: number,
  k: number,
): () => { tensors: Tensor[]; multiply: (x: Tensor) => Tensor } {
  const scale = 1 / Math.sqrt(k);
  if (weights === 'f32' || weights === 'bf16') {
    return () => {
      const w = randomTensor([n, k], weights, scale);
      return { tensors: [w], multiply: (x) => ops.linear(x, w, { math: weights }) };
    };
  }
  return () => {
    const dense = randomTensor([n, k], 'f32', scale);
    const w = ops.quantize(dense, { bits: weights === 'int8' ? 8 : 4 });
    dense.dispose();
    return { tensors: [w.q, w.scales], multiply: (x) => ops.quantLinear(x, w) };
  };
}

async function prepareVision(job: Job & { kind: 'vision' | 'qformer' }): Promise<Prepared> {
  setThreads(job.threads);
  const checkpoint = openCheckpoint(job.model);
  const weights = new ModelWeights(checkpoint, { device: 'cpu', dtype: 'bf16', ...typesOf(job.weights) });
  const model = createModel(checkpoint, weights);
  await weights.load();
  const { imageSize, hiddenSize } = checkpoint.config.vision!;
  const input =
    job.kind === 'vision' ? randomTensor([job.batch, 3, imageSize, imageSize]) : randomTensor([PATCH_ROWS, hiddenSize]);
  const run = () => (job.kind === 'vision' ? model.encodeImage!(input) : model.imageTokens!(input, 1));
  return {
    run: timed(() => scope(() => void run())),
    release: () => {
      input.dispose();
      model.dispose();
    },
  };
}

async function prepareImage({ file, size, threads }: Job & { kind: 'image' }): Promise<Prepared> {
  setThreads(threads);
  const bytes = readFileSync(file);
  const buffers = new PixelBuffers();
  const run = async () => {
    const { data, width, height } = await loadImage(bytes, {}, buffers);
    scope(() => {
      const pixels = Tensor.fromArray(data, [height, width, 3]);
      keep(ops.normalizeImage(ops.resizeBicubic(pixels, size, size), NORM)).dispose();
    });
    buffers.giveBack([data.buffer]); // as the engine's worker does
  };
  return { run: timedAsync(run), release: () => {} };
}

void serve(prepare);
