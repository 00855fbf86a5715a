// What loaded adapters take in memory beside the weights, from their configurations and headers alone.
//
// Each tensor is held in f32. Low-rank parts of linear layers lie once more in tables, one row for every adapter and as high as the
// largest rank. What changes a weight itself (DoRA, embeddings, convolutions, whole modules, biases) has a copy of that weight.

import { checkpointNames, readAdapter, type AdapterModule } from './adapter.js';
import type { TensorEntry } from './safetensors.js';

/** Of one linear layer: what its table holds of each adapter. */
interface Table {
  rank: number;
  /** Input and output features. */
  width: number;
}

/**
 * Bytes that the adapters in the folders `dirs` take when all are loaded beside a model with these tensors. `held`: bytes of a
 * weight as the model holds it; `activationBytes`: of an element of the tables. What fits no tensor is left out: loading says so.
 * Errors of `readAdapter`.
 */
export function adapterBytes(
  dirs: readonly string[],
  tensors: ReadonlyMap<string, TensorEntry>,
  { held, activationBytes }: { held: (entry: TensorEntry) => number; activationBytes: number },
): number {
  const tables = new Map<string, Table>();
  let bytes = 0;
  for (const { modules, replacements } of dirs.map(readAdapter)) {
    const changed = new Set<string | undefined>();
    for (const module of modules) {
      const { path, a, b, bias, magnitude } = module;
      bytes += 4 * [a, b, bias, magnitude].reduce((sum, entry) => sum + elements(entry), 0);
      const name = checkpointNames(path).find((candidate) => tensors.has(`${candidate}.weight`));
      if (name === undefined) continue;
      if (isRow(module)) {
        const { rank = 0 } = tables.get(name) ?? {};
        tables.set(name, { rank: Math.max(rank, module.rank), width: a!.shape[1]! + b!.shape[0]! });
      } else changed.add(`${name}.weight`);
      if (bias !== undefined) changed.add(`${name}.bias`);
    }
    for (const [path, entry] of replacements) {
      bytes += 4 * elements(entry);
      changed.add(checkpointNames(path).find((candidate) => tensors.has(candidate)));
    }
    for (const [name, entry] of tensors) if (changed.has(name)) bytes += held(entry);
  }
  for (const { rank, width } of tables.values()) bytes += dirs.length * (rank * width * activationBytes + 4);
  return bytes;
}

/** Whether a module is added row by row: the low-rank part of a linear layer that is not the head. */
const isRow = ({ path, a, b, isEmbedding, magnitude }: AdapterModule): boolean =>
  !isEmbedding && magnitude === undefined && a?.shape.length === 2 && b !== undefined && !/(?:^|\.)lm_head$/.test(path);

const elements = (entry: TensorEntry | undefined): number =>
  entry === undefined ? 0 : entry.shape.reduce((product, length) => product * length, 1);
