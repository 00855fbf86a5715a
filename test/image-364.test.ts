// Checkpoints of another resolution, as BLIP-2's -coco ones: 364 pixels are 26 × 26 patches and 677 tokens of the vision tower. The
// fixture models with such a configuration and a position table of their own, against the reference, on every device.

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../lib/io/checkpoint.js';
import { liveTensors } from '../lib/tensor/index.js';
import { expectDevices, inF32, isChecked, sample, testDevices } from './support/devices.js';
import { readImage, runTogether, withEngine } from './support/engine-models.js';
import { expectClose, fixturePath, Goldens, readJson } from './support/fixtures.js';
import { noise } from './support/noise.js';
import { layout, rawSafetensors } from './support/safetensors-builder.js';
import { LOGPROBS } from './support/tolerances.js';

expectDevices();

interface Reference {
  prefix: string;
  image: string;
  ids: number[];
  logprobs: number[];
}

const { models } = readJson<{ models: Record<string, Reference> }>('generated', 'image-364.json');
const POSITIONS = 'vision_model.embeddings.position_embedding';
const root = mkdtempSync(join(tmpdir(), 'qformer-364-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));
afterEach(() => expect(liveTensors()).toBe(0));

/** A copy of a fixture model for images of 364 pixels, in one file. */
function largeCheckpoint(name: string): string {
  const dir = join(root, name);
  cpSync(fixturePath(name), dir, { recursive: true, filter: (path) => !path.includes('.safetensors') });
  const { tensors, config } = openCheckpoint(fixturePath(name));
  const width = config.vision!.hiddenSize;
  const shape = [1, 677, width];
  const table = new Uint8Array(noise(677 * width, 364).map((value) => 0.05 * value).buffer);
  const parts = [...tensors.values()].map((entry) => ({
    ...entry,
    ...(entry.name === POSITIONS && { dtype: 'F32', shape, bytes: table.length }),
    data:
      entry.name === POSITIONS ? table : readFileSync(entry.file).subarray(entry.offset, entry.offset + entry.bytes),
  }));
  const { header } = layout(Object.fromEntries(parts.map((part) => [part.name, part])));
  const head = rawSafetensors(JSON.stringify(header), 0);
  writeFileSync(join(dir, 'model.safetensors'), Buffer.concat([head, ...parts.map(({ data }) => data)]));
  edit(join(dir, 'config.json'), (json) => ((json.vision_config as Record<string, unknown>).image_size = 364));
  edit(join(dir, 'preprocessor_config.json'), (json) => (json.size = { height: 364, width: 364 }));
  return dir;
}

function edit(file: string, change: (json: Record<string, unknown>) => void): void {
  const json = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
  change(json);
  rmSync(file);
  writeFileSync(file, JSON.stringify(json));
}

const cases = testDevices.flatMap((device) =>
  sample(device, Object.entries(models)).map(([name, reference]) => ({ name, device, ...reference })),
);

describe.each(cases)('$name at 364 pixels on $device', ({ name, device, prefix, image, ...reference }) => {
  it('answers as the reference', async () => {
    const tokens = isChecked(device) ? 2 : reference.ids.length;
    const [ids, logprobs] = [reference.ids.slice(0, tokens), reference.logprobs.slice(0, tokens)];
    const dir = largeCheckpoint(name);
    expect(openCheckpoint(dir).preprocessor!.imageSize).toBe(364);
    const request = {
      ids: new Goldens(name, 'expected.safetensors').ids(`${prefix}input_ids`),
      images: [await readImage(fixturePath(name, image))],
      params: { maxNewTokens: ids.length, ignoreEos: true, logprobs: 1 },
    };
    await withEngine(name, { ...inF32(device), dir }, (loaded) => {
      const [result] = runTogether(loaded, [request]);
      expect(result!.tokenIds).toEqual(ids);
      expectClose(
        result!.logprobs!.map(({ logprob }) => logprob),
        logprobs,
        LOGPROBS.f32,
      );
    });
  });
});
