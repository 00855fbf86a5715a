// Tells checkpoints apart cheaply: everything that is small is hashed whole, of each tensor its description and its first bytes.
// Training moves every tensor, so another model has another digest; it protects against mistakes, not against forgery.

import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { configFile } from './checkpoint.js';
import { fileExists, readWholeFile, withOpenFile } from './files.js';
import type { TensorEntry } from './safetensors.js';

const SIDE_FILES = ['preprocessor_config.json', 'processor_config.json', 'tokenizer.json'];
const MAX_SIDE_BYTES = 128 * 2 ** 20;
/** Of each tensor, bytes. */
const SAMPLE_BYTES = 4096;

/** Hexadecimal digest of the checkpoint in `dir` with these tensors. Throws IO. */
export function modelDigest(dir: string, tensors: ReadonlyMap<string, TensorEntry>): string {
  const hash = createHash('sha256');
  for (const file of [configFile(dir), ...SIDE_FILES.map((name) => join(dir, name))]) {
    if (fileExists(file)) hash.update(readWholeFile(file, MAX_SIDE_BYTES));
    hash.update('\0');
  }
  const entries = [...tensors.values()];
  for (const file of new Set(entries.map((entry) => entry.file))) {
    withOpenFile(file, (read) => {
      for (const { name, dtype, shape, offset, bytes } of entries.filter((entry) => entry.file === file)) {
        hash.update(`${name} ${dtype} ${shape.join()}\0`).update(read(offset, Math.min(bytes, SAMPLE_BYTES)));
      }
    });
  }
  return hash.digest('hex');
}
