// What a checkpoint folder holds, from its JSON and the headers of its weight files: no weight is read and no tensor made.

import { resolve } from 'node:path';
import { availableMemory } from './io/available-memory.js';
import { openCheckpoint, type Checkpoint, type OpenOptions } from './io/checkpoint.js';
import { estimateCheckpoint, type MemoryEstimate } from './io/memory-estimate.js';
import { isRetrievalCheckpoint, openRetrievalCheckpoint, type RetrievalCheckpoint } from './io/retrieval-checkpoint.js';
import { checkEstimateOptions, type EstimateOptions } from './options.js';

/** Sizes of one part of a model. */
export interface PartInfo {
  part: string;
  tensors: number;
  parameters: number;
  bytes: number;
}

/** The content of a checkpoint folder. `bytes` count weights, `parameters` elements. */
export interface CheckpointInfo {
  dir: string;
  modelType: string;
  languageModel: string;
  files: string[];
  tensors: number;
  parameters: number;
  bytes: number;
  bytesByDtype: Record<string, number>;
  parts: PartInfo[];
}

const parts: readonly [name: string, pattern: RegExp][] = [
  ['vision encoder', /^(?:model\.)?vision_model\./],
  ['Q-Former', /^(?:model\.)?(?:qformer\.|query_tokens$|embeddings\.)/],
  ['projection', /^(?:model\.)?(?:language|vision|text)_projection\./],
  ['matching head', /^itm_head\./],
  [
    'language model',
    /^(?:(?:model\.)?language_model\.|lm_head\.|shared\.|encoder\.|decoder\.|model\.(?:layers|embed_tokens|norm|decoder)\.)/,
  ],
];

/** Reads the description of the checkpoint in `dir`. Throws IO or FORMAT naming the file; errors of two folders as `loadModel`. */
export function inspect(dir: string, options: OpenOptions = {}): CheckpointInfo {
  const checkpoint = open(dir, options);
  const byPart = new Map<string, PartInfo>();
  const bytesByDtype: Record<string, number> = {};
  for (const tensor of checkpoint.tensors.values()) {
    const name = parts.find(([, pattern]) => pattern.test(tensor.name))?.[0] ?? 'other';
    const part = byPart.get(name) ?? { part: name, tensors: 0, parameters: 0, bytes: 0 };
    part.tensors += 1;
    part.parameters += tensor.shape.reduce((product, length) => product * length, 1);
    part.bytes += tensor.bytes;
    byPart.set(name, part);
    bytesByDtype[tensor.dtype] = (bytesByDtype[tensor.dtype] ?? 0) + tensor.bytes;
  }
  const order = [...parts.map(([name]) => name), 'other'];
  const list = [...byPart.values()].sort((a, b) => order.indexOf(a.part) - order.indexOf(b.part));
  const total = (pick: (part: PartInfo) => number) => list.reduce((sum, part) => sum + pick(part), 0);
  return {
    dir: resolve(dir),
    modelType: checkpoint.config.modelType,
    languageModel: 'text' in checkpoint.config ? checkpoint.config.text.modelType : 'none',
    files: checkpoint.files,
    tensors: total((part) => part.tensors),
    parameters: total((part) => part.parameters),
    bytes: total((part) => part.bytes),
    bytesByDtype,
    parts: list,
  };
}

/**
 * The memory that the checkpoint in `dir` takes on the CPU of this machine, from its files' headers: nothing is loaded. Errors as
 * `inspect`, INVALID_ARGUMENT for options.
 */
export function estimateMemory(dir: string, options: EstimateOptions = {}): MemoryEstimate & { available: number } {
  checkEstimateOptions(options);
  const available = availableMemory();
  return { ...estimateCheckpoint(open(dir, options), options, available), available };
}

function open(dir: string, options: OpenOptions): Checkpoint | RetrievalCheckpoint {
  return isRetrievalCheckpoint(dir) ? openRetrievalCheckpoint(dir) : openCheckpoint(dir, options);
}
