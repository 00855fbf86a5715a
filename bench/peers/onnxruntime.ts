// onnxruntime-node as a contestant, on its CPU provider with all graph optimisations. argv: the folder it is installed in.

import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { Job, Prepared } from './protocol.js';
import { randomValues } from '../random.js';
import { serve, timedAsync } from './serve.js';

const IMAGE_SIZE = 224;

/** What is used of onnxruntime-node, which is not a dependency and so has no types here. */
interface OnnxRuntime {
  InferenceSession: {
    create(path: string, options: object): Promise<{ run(feeds: object): Promise<object>; release(): Promise<void> }>;
  };
  Tensor: new (type: 'float32', data: Float32Array, dims: number[]) => object;
}

async function prepare(job: Job): Promise<Prepared> {
  if (job.kind !== 'vision') throw new Error(`no ${job.kind}`);
  const { InferenceSession, Tensor } = createRequire(join(process.argv[2]!, 'package.json'))(
    'onnxruntime-node',
  ) as OnnxRuntime;
  const session = await InferenceSession.create(job.model, {
    executionProviders: ['cpu'],
    intraOpNumThreads: job.threads,
    graphOptimizationLevel: 'all',
  });
  const dims = [job.batch, 3, IMAGE_SIZE, IMAGE_SIZE];
  const pixels = new Tensor('float32', randomValues(dims.reduce((all, extent) => all * extent, 1)), dims);
  return {
    run: timedAsync(() => session.run({ pixel_values: pixels })),
    release: () => session.release(),
  };
}

void serve(prepare);
