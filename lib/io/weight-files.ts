// Which files of a checkpoint folder hold its weights: one file, or shards listed by an index; safetensors where there are any,
// else PyTorch's .bin. Only headers are read. The index is untrusted: it may name plain files of this folder and nothing else.

import { readdirSync } from 'node:fs';
import { join } from 'node:path';

import { QFormerError, describe } from '../errors.js';
import { fileExists, ioError, readJsonObject, statOptional } from './files.js';
import { JsonFields } from './json-fields.js';
import { readSafetensorsHeader, type TensorEntry } from './safetensors.js';
import { readTorchFile } from './torch-file.js';

/** A way in which weights are stored. */
interface Format {
  single: string;
  index: string;
  extension: string;
  read: (file: string) => Map<string, TensorEntry>;
}

/** The first that a folder has is taken. */
const FORMATS: readonly Format[] = [
  {
    single: 'model.safetensors',
    index: 'model.safetensors.index.json',
    extension: '.safetensors',
    read: readSafetensorsHeader,
  },
  { single: 'pytorch_model.bin', index: 'pytorch_model.bin.index.json', extension: '.bin', read: readTorchFile },
];
const MAX_LISTED = 8;

/** The tensors of the folder `dir` by name, with their places in its files. Throws IO, FORMAT and UNSUPPORTED. */
export function readWeightFiles(dir: string): Map<string, TensorEntry> {
  for (const format of FORMATS) {
    const single = join(dir, format.single);
    if (fileExists(single)) return format.read(single);
    if (fileExists(join(dir, format.index))) return readShards(dir, format);
  }
  throw noWeights(dir);
}

function noWeights(dir: string): QFormerError {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch (error) {
    return ioError(dir, error);
  }
  const looked = FORMATS.flatMap(({ single, index }) => [single, index]).join(', ');
  const loose = names.filter((name) => /\.(safetensors|bin|pt|pth)$/.test(name));
  const hint = loose.length > 0 ? `; found ${listed(loose)} without an index` : '';
  return new QFormerError('IO', `${dir}: has none of ${looked}${hint}`, { dir, files: loose });
}

function readShards(dir: string, format: Format): Map<string, TensorEntry> {
  const index = join(dir, format.index);
  const weightMap = readWeightMap(dir, index, format.extension);
  const names = [...new Set(weightMap.values())];
  const missing = names.filter((name) => statOptional(join(dir, name)) === undefined);
  if (missing.length > 0) {
    const message = `${dir}: ${missing.length} of ${names.length} shards are missing: ${listed(missing)}`;
    throw new QFormerError('IO', message, { dir, missing });
  }
  const tensors = new Map<string, TensorEntry>();
  for (const name of names) addShard(tensors, format.read(join(dir, name)));
  checkPlaces(weightMap, tensors, dir, index);
  return tensors;
}

function readWeightMap(dir: string, index: string, extension: string): Map<string, string> {
  const fields = new JsonFields(index, readJsonObject(index));
  const raw = fields.optionalObject('weight_map') && (fields.raw('weight_map') as Record<string, unknown>);
  if (raw === undefined)
    throw new QFormerError('FORMAT', `${index}: weight_map is missing`, { file: index, key: 'weight_map' });
  const weightMap = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(raw)) {
    if (typeof shard !== 'string' || !isPlainName(shard, extension)) {
      const message = `${index}: weight_map['${tensor}'] must name a ${extension} file in ${dir}, got ${describe(shard)}`;
      throw new QFormerError('FORMAT', message, { file: index, tensor });
    }
    weightMap.set(tensor, shard);
  }
  if (weightMap.size === 0)
    throw new QFormerError('FORMAT', `${index}: weight_map is empty`, { file: index, key: 'weight_map' });
  return weightMap;
}

// No separators of any platform and no drive letters: a name that cannot leave the folder.
function isPlainName(name: string, extension: string): boolean {
  return name.length <= 255 && name.endsWith(extension) && !/[/\\:\0]/.test(name);
}

function addShard(tensors: Map<string, TensorEntry>, shard: Map<string, TensorEntry>): void {
  for (const [name, entry] of shard) {
    const other = tensors.get(name);
    if (other !== undefined) {
      const message = `tensor '${name}' is stored twice, in ${other.file} and in ${entry.file}`;
      throw new QFormerError('FORMAT', message, { tensor: name, files: [other.file, entry.file] });
    }
    tensors.set(name, entry);
  }
}

function checkPlaces(
  weightMap: Map<string, string>,
  tensors: Map<string, TensorEntry>,
  dir: string,
  index: string,
): void {
  for (const [tensor, shard] of weightMap) {
    const file = join(dir, shard);
    const actual = tensors.get(tensor)?.file;
    if (actual === file) continue;
    const where = actual === undefined ? 'is in no shard' : `is in ${actual}`;
    const message = `${index}: tensor '${tensor}' should be in ${file}, but ${where}`;
    throw new QFormerError('FORMAT', message, { file: index, tensor });
  }
}

function listed(names: readonly string[]): string {
  const more = names.length > MAX_LISTED ? `, … (${names.length} in all)` : '';
  return names.slice(0, MAX_LISTED).join(', ') + more;
}
