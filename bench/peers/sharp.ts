// sharp alone as a contestant: it shrinks while it decodes, so that its pixels are others than Pillow's and ours.

import { readFileSync } from 'node:fs';
import sharp from 'sharp';
import type { Job, Prepared } from './protocol.js';
import { serve, timedAsync } from './serve.js';

const MEAN = [0.48145466, 0.4578275, 0.40821073];
const STD = [0.26862954, 0.26130258, 0.27577711];

async function prepare(job: Job): Promise<Prepared> {
  if (job.kind !== 'image') throw new Error(`no ${job.kind}`);
  sharp.concurrency(job.threads);
  const bytes = readFileSync(job.file);
  const { size } = job;
  const run = async () => {
    const image = sharp(bytes).resize(size, size, { fit: 'fill', kernel: 'cubic' }).removeAlpha();
    const data = await image.raw().toBuffer();
    const values = new Float32Array(3 * size * size);
    for (let channel = 0; channel < 3; channel++) {
      const [scale, shift] = [1 / (255 * STD[channel]!), MEAN[channel]! / STD[channel]!];
      const plane = channel * size * size;
      for (let i = 0; i < size * size; i++) values[plane + i] = data[3 * i + channel]! * scale - shift;
    }
  };
  return { run: timedAsync(run), release: () => {} };
}

void serve(prepare);
