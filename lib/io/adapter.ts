// A LoRA adapter as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors or .bin. Reads the
// configuration and the tensors' places, and sorts the tensors by module; whether they fit a model is for the model to say.
// Keys: `base_model.model.` + the module's path in the model that was wrapped + a suffix.
// Source: peft 0.21, utils/save_and_load.py.

import { join } from 'node:path';
import { QFormerError, describe } from '../errors.js';
import { readAdapterConfig } from './adapter-config.js';
import { fileExists, statOptional } from './files.js';
import { readSafetensorsHeader, type TensorEntry } from './safetensors.js';
import { readTorchFile } from './torch-file.js';

/** The low-rank part of one module. */
export interface AdapterModule {
  /** Of the module, in the model that was wrapped. */
  path: string;
  scaling: number;
  /** As the configuration has it. */
  rank: number;
  /** [rank, in], of a convolution [rank, in, height, width], of an embedding [rank, rows] */
  a?: TensorEntry;
  /** [out, rank], of a convolution [out, rank, 1, 1], of an embedding [dim, rank] */
  b?: TensorEntry;
  /** [out]: scaled and added to the module's bias */
  bias?: TensorEntry;
  /** [out]: the length of every row of the weight (DoRA) */
  magnitude?: TensorEntry;
  isEmbedding: boolean;
}

/** An adapter folder. */
export interface AdapterFiles {
  dir: string;
  modules: AdapterModule[];
  /** Tensors that take the place of the model's: parameter path → tensor. */
  replacements: Map<string, TensorEntry>;
  /** Names of tensors that are none of these. */
  unknown: string[];
  /** Of all tensors. */
  bytes: number;
}

/** What callers are told of a loaded adapter. */
export interface AdapterInfo {
  name: string;
  /** Its folder. */
  dir: string;
  /** Modules of the model that it changes. */
  modules: number;
  /** The largest rank. */
  rank: number;
  /** Of its tensors, as stored. */
  bytes: number;
  /** Parts of the model that it changes. */
  parts: AdapterPart[];
  merged: boolean;
}

export type AdapterPart = 'vision' | 'qformer' | 'language';

const PREFIX = 'base_model.model.';

/** Suffixes of a module's tensors, as saved and, with the adapter's name in them, as in a state dict. */
const PARTS: readonly [RegExp, 'a' | 'b' | 'bias' | 'magnitude', boolean][] = [
  [/\.lora_A(?:\.default)?\.weight$/, 'a', false],
  [/\.lora_B(?:\.default)?\.weight$/, 'b', false],
  [/\.lora_B(?:\.default)?\.bias$/, 'bias', false],
  [/\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$/, 'magnitude', false],
  [/\.lora_embedding_A(?:\.default)?$/, 'a', true],
  [/\.lora_embedding_B(?:\.default)?$/, 'b', true],
];

/** Reads the folder `dir`. Throws INVALID_ARGUMENT, IO, FORMAT, and UNSUPPORTED for adapters that are known but not implemented. */
export function readAdapter(dir: string): AdapterFiles {
  if (typeof dir !== 'string' || dir === '') {
    throw new QFormerError('INVALID_ARGUMENT', `adapter folder must be a non-empty string, got ${describe(dir)}`);
  }
  if (!statOptional(dir)?.isDirectory()) throw new QFormerError('IO', `${dir}: no such folder`, { file: dir });
  const configFile = join(dir, 'adapter_config.json');
  if (!fileExists(configFile)) {
    const message = `${dir}: has no adapter_config.json, so it is not an adapter folder`;
    throw new QFormerError('IO', message, { file: configFile });
  }
  const config = readAdapterConfig(configFile);
  const files: AdapterFiles = { dir, modules: [], replacements: new Map(), unknown: [], bytes: 0 };
  const modules = new Map<string, AdapterModule>();
  for (const [name, entry] of readTensors(dir)) {
    files.bytes += entry.bytes;
    if (!name.startsWith(PREFIX)) files.unknown.push(name);
    else sort(name.slice(PREFIX.length), entry, files, modules, config.scalingOf);
  }
  files.modules = [...modules.values()];
  return files;
}

/** Names that a path in the wrapped model may have in the checkpoint: the whole model was wrapped, or its language model only. */
export function checkpointNames(path: string): string[] {
  const moved = path
    .replace(/^model\.language_model\./, 'language_model.model.')
    .replace(/^lm_head\b/, 'language_model.lm_head');
  return [path, `language_model.${path}`, moved, path.replace(/^model\./, '')];
}

function readTensors(dir: string): Map<string, TensorEntry> {
  const [safetensors, pickled] = ['adapter_model.safetensors', 'adapter_model.bin'].map((name) => join(dir, name));
  if (fileExists(safetensors!)) return readSafetensorsHeader(safetensors!);
  if (fileExists(pickled!)) return readTorchFile(pickled!);
  const message = `${dir}: has neither adapter_model.safetensors nor adapter_model.bin`;
  throw new QFormerError('IO', message, { file: safetensors });
}

function sort(
  name: string,
  entry: TensorEntry,
  files: AdapterFiles,
  modules: Map<string, AdapterModule>,
  scalingOf: (path: string) => { rank: number; scaling: number },
): void {
  for (const [suffix, part, isEmbedding] of PARTS) {
    if (!suffix.test(name)) continue;
    const path = name.replace(suffix, '');
    let module = modules.get(path);
    if (module === undefined) modules.set(path, (module = { path, ...scalingOf(path), isEmbedding }));
    module[part] = entry;
    return;
  }
  if (!/\.(?:weight|bias)$/.test(name) || name.includes('.lora_')) files.unknown.push(PREFIX + name);
  else
    files.replacements.set(
      name.replace(/\.(?:base_layer|modules_to_save(?:\.default)?|original_module)\./, '.'),
      entry,
    );
}
