// The stages of one image alone, in this thread, through the layers below the engine: decode, preprocess, ViT, Q-Former.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { openCheckpoint } from '../../lib/io/checkpoint.js';
import { loadImage } from '../../lib/io/image.js';
import { defaultPreprocessor } from '../../lib/io/side-config.js';
import { createModel } from '../../lib/models/registry.js';
import { Weights } from '../../lib/models/weights.js';
import { keep, ops, scope, setThreads, Tensor } from '../../lib/tensor/index.js';
import { measure, summarise } from '../measure.js';
import type { Options } from '../options.js';
import type { Row } from '../row.js';
import { SAMPLES, type ModelChoice } from './package.js';

const INSTRUCTION = [101, 17, 18, 19, 20, 21, 22, 102];
const SAMPLE = 'fox_noto.png';

/** Measures the stages of a model. */
export async function runStages(
  { dir, dtype, group }: ModelChoice,
  options: Options,
  threads: number,
  send: (row: Row) => void,
): Promise<void> {
  setThreads(threads);
  const budget = 2 * options.budget;
  const timed = (name: string, run: () => void) => send({ group, name, threads, timing: measure(run, budget) });
  send({ group, name: `decode ${SAMPLE} (sharp)`, threads, timing: await timeDecode(options.smoke ? 5 : 50) });

  const checkpoint = openCheckpoint(dir);
  const { vision, qformer } = checkpoint.config;
  if (vision === undefined || qformer === undefined) return;
  const weights = new Weights(checkpoint, { device: 'cpu', dtype });
  const model = createModel(checkpoint, weights);
  await weights.load();
  try {
    const {
      imageSize,
      rescaleFactor: rescale,
      mean,
      std,
    } = checkpoint.preprocessor ?? defaultPreprocessor(vision.imageSize);
    const { data, width, height } = await loadImage(readFileSync(join(SAMPLES, SAMPLE)));
    const image = keep(Tensor.fromArray(data, [height, width, 3]));
    const preprocess = () =>
      ops
        .normalizeImage(ops.resizeBicubic(image, imageSize, imageSize), { rescale, mean, std })
        .reshape([1, 3, imageSize, imageSize]);
    timed(`preprocess ${width}×${height} → ${imageSize}×${imageSize}`, () => scope(() => void preprocess()));
    const pixels = keep(scope(preprocess));
    timed(`ViT, ${vision.numLayers} layers of ${vision.hiddenSize}`, () =>
      scope(() => void model.encodeImage!(pixels)),
    );
    const features = keep(scope(() => model.encodeImage!(pixels)));
    const text = qformer.useTextInput ? [INSTRUCTION] : undefined;
    timed(`Q-Former, ${qformer.numLayers} layers of ${qformer.hiddenSize}, and projection`, () =>
      scope(() => void model.imageTokens!(features, 1, text)),
    );
    [image, pixels, features].forEach((tensor) => tensor.dispose());
  } finally {
    model.dispose();
  }
}

async function timeDecode(runs: number): Promise<ReturnType<typeof summarise>> {
  const bytes = readFileSync(join(SAMPLES, SAMPLE));
  const samples: number[] = [];
  for (let i = 0; i <= runs; i++) {
    const start = performance.now();
    await loadImage(bytes);
    if (i > 0) samples.push(performance.now() - start);
  }
  return summarise(samples);
}
