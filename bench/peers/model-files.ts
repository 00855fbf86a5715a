// The models that contestants load: random weights, the same in every run, written once into build-peers/models and kept.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import sharp from 'sharp';
import { DEMONSTRATION_MODEL } from '../model/package.js';
import { SMALL, writeSyntheticCheckpoint, type SyntheticConfig, type SyntheticText } from '../model/synthetic.js';
import { randomValues } from '../random.js';
import { writeGguf } from './gguf.js';
import { PEERS_FOLDER } from './install.js';
import { writeVisionOnnx } from './onnx.js';

/** LLaMA at TinyLlama's sizes: 1.1 billion weights. */
export const LLAMA_1B: SyntheticText = { ...SMALL.text_config, num_hidden_layers: 22 };

/** BLIP-2's vision tower (ViT-g, 986 million weights) and Q-Former in front of one layer of a language model. */
export const VIT_G: SyntheticConfig = {
  ...SMALL,
  architectures: ['Blip2ForConditionalGeneration'],
  model_type: 'blip-2',
  vision_config: { ...SMALL.vision_config, model_type: 'blip_2_vision_model', num_hidden_layers: 39 },
  qformer_config: { ...SMALL.qformer_config, model_type: 'blip_2_qformer', num_hidden_layers: 12, vocab_size: 30522 },
  text_config: { ...SMALL.text_config, num_hidden_layers: 1 },
};

const MODELS = join(PEERS_FOLDER, 'models');
const PHOTO = { width: 1500, height: 1000, quality: 90 };

const writers = {
  'llama-1b': (path: string) => {
    mkdirSync(path);
    writeSyntheticCheckpoint(path, DEMONSTRATION_MODEL, LLAMA_1B);
  },
  'llama-1b-BF16.gguf': (path: string) => writeGguf(path, LLAMA_1B, 'BF16'),
  'llama-1b-Q8_0.gguf': (path: string) => writeGguf(path, LLAMA_1B, 'Q8_0'),
  'llama-1b-Q4_0.gguf': (path: string) => writeGguf(path, LLAMA_1B, 'Q4_0'),
  'vit-g': (path: string) => {
    mkdirSync(path);
    writeSyntheticCheckpoint(path, DEMONSTRATION_MODEL, VIT_G);
  },
  // a folder, because the file names the one with its weights
  'vit-g-onnx': (path: string) => {
    mkdirSync(path);
    writeVisionOnnx(join(path, 'model.onnx'), VIT_G.vision_config);
  },
  'photo.jpg': writePhoto,
} satisfies Record<string, (path: string) => void | Promise<void>>;

export type ModelFile = keyof typeof writers;

/** Where `file` is or will be. */
export function modelPath(file: ModelFile): string {
  return file === 'vit-g-onnx' ? join(MODELS, file, 'model.onnx') : join(MODELS, file);
}

/** Writes those of `files` that are not there yet. A file that was interrupted is written anew. */
export async function makeModelFiles(files: ReadonlySet<ModelFile>): Promise<void> {
  mkdirSync(MODELS, { recursive: true });
  for (const file of files) {
    const target = join(MODELS, file);
    if (existsSync(target)) continue;
    const part = `${target}.part`;
    rmSync(part, { recursive: true, force: true });
    await writers[file](part);
    renameSync(part, target);
    const bytes = statSync(target).isFile() ? `, ${(statSync(target).size / 1e6).toFixed(1)} MB` : '';
    console.log(`written: ${target}${bytes}`);
  }
}

/**
 * Has the kernel forget what it holds of `files`, so that whoever reads them finds them as after a restart. How a file came into
 * the page cache decides the size of its pages there, and by that the speed of weights that are used in place.
 */
export function forgetPages(files: ReadonlySet<ModelFile>): void {
  for (const file of files) {
    const target = join(MODELS, file);
    const parts = statSync(target).isFile() ? [target] : readdirSync(target).map((part) => join(target, part));
    // GNU dd; elsewhere the pages stay.
    for (const part of parts) spawnSync('dd', [`if=${part}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' });
  }
}

/** A picture of soft shapes with some grain, so that decoding costs what a photograph's does (0.3 MB). */
async function writePhoto(path: string): Promise<void> {
  const { width, height, quality } = PHOTO;
  const pixels = Buffer.alloc(3 * width * height);
  const grain = randomValues(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      for (let c = 0; c < 3; c++) {
        const shape = Math.sin(x / (37 + 11 * c)) * Math.cos(y / (53 - 7 * c)) + Math.sin((x + y) / 211);
        pixels[3 * i + c] = 128 + 55 * shape + 6 * grain[i]!;
      }
    }
  }
  await sharp(pixels, { raw: { width, height, channels: 3 } })
    .jpeg({ quality })
    .toFile(path);
}
