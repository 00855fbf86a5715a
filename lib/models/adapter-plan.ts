// How an adapter folder fits a model: which of its modules are added row by row while the model runs (a low-rank part of a linear
// layer), and which tensors of the model it changes instead (DoRA, biases, embeddings, convolutions, whole modules). Everything
// that does not fit is named in one error.

import { checkpointNames, type AdapterFiles, type AdapterModule } from '../io/adapter.js';
import type { TensorEntry } from '../io/safetensors.js';
import { QFormerError } from '../errors.js';
import type { Weights } from './weights.js';

/** What an adapter does to a model; names are the model's. */
export interface AdapterPlan {
  /** Linear layer → its low-rank part, added to the layer's product. */
  rows: Map<string, AdapterModule>;
  /** Parameter → what changes it, in order: a tensor in its place, then a low-rank part. */
  changes: Map<string, AdapterChange>;
}

export interface AdapterChange {
  replacement?: TensorEntry;
  module?: AdapterModule;
}

/** Throws FORMAT naming every tensor without a place in the model, of a wrong shape or without its counterpart; UNSUPPORTED. */
export function planAdapter(files: AdapterFiles, weights: Weights): AdapterPlan {
  const plan: AdapterPlan = { rows: new Map(), changes: new Map() };
  const unmatched = [...files.unknown];
  const mismatched: string[] = [];
  for (const module of files.modules) {
    const faults = faultsOf(module);
    if (faults.length > 0) mismatched.push(...faults);
    else if (!placeModule(module, weights, plan, mismatched)) unmatched.push(module.a!.name, module.b!.name);
  }
  for (const [path, entry] of files.replacements) {
    const name = checkpointNames(path).find((candidate) => weights.checkpoint.tensors.has(candidate));
    const shape = name === undefined ? undefined : weights.checkpoint.tensors.get(name)!.shape;
    if (name === undefined || !weights.has(name)) unmatched.push(entry.name);
    else if (!isShape(entry, shape!)) mismatched.push(wrong(entry, shape!));
    else if (!isFloat(entry)) mismatched.push(`${entry.name} is ${entry.dtype}`);
    else if (isTied(name, weights)) throw tied(entry);
    else plan.changes.set(name, { ...plan.changes.get(name), replacement: entry });
  }
  if (unmatched.length + mismatched.length > 0) throw misfit(files, unmatched, mismatched);
  if (plan.rows.size + plan.changes.size === 0) {
    throw new QFormerError('FORMAT', `${files.dir}: the adapter has no tensors`, { dir: files.dir });
  }
  return plan;
}

/** What is wrong with a module by itself. */
function faultsOf({ path, a, b, rank }: AdapterModule): string[] {
  if (a === undefined || b === undefined) return [`${path} has ${a === undefined ? 'B but no A' : 'A but no B'}`];
  const found = [a.shape[0], b.shape[1]];
  if (found.some((extent) => extent !== rank)) {
    return [`${path} has rank ${found.join(' and ')}, by the configuration ${rank}`];
  }
  return [a, b].filter((entry) => !isFloat(entry)).map(({ name, dtype }) => `${name} is ${dtype}`);
}

/** False where the model has no such module. */
function placeModule(module: AdapterModule, weights: Weights, plan: AdapterPlan, mismatched: string[]): boolean {
  const { tensors } = weights.checkpoint;
  const name = checkpointNames(module.path).find((candidate) => weights.has(`${candidate}.weight`));
  if (name === undefined) return false;
  const weight = `${name}.weight`;
  const [out, ...rest] = tensors.get(weight)!.shape as [number, ...number[]];
  const { a, b, rank, isEmbedding, magnitude, bias } = module as Required<AdapterModule>;
  const input = isEmbedding ? [out] : rest;
  const output = isEmbedding ? rest : [out];
  const expected: [TensorEntry, number[]][] = [
    [a, [rank, ...input]],
    [b, [...output, rank, ...(rest.length === 3 ? [1, 1] : [])]],
  ];
  if (magnitude !== undefined) expected.push([magnitude, magnitude.shape.length === 2 ? [1, out] : [out]]);
  if (bias !== undefined) expected.push([bias, [out]]);
  const faults = expected.filter(([entry, shape]) => !isShape(entry, shape));
  mismatched.push(...faults.map(([entry, shape]) => wrong(entry, shape)));
  if (faults.length > 0) return true;
  if (isEmbedding && isTied(weight, weights)) throw tied(a);
  if (bias !== undefined) {
    if (!weights.has(`${name}.bias`)) {
      const message = `${bias.name}: a bias for a layer that has none is not supported`;
      throw new QFormerError('UNSUPPORTED', message, { tensor: bias.name });
    }
    plan.changes.set(`${name}.bias`, { ...plan.changes.get(`${name}.bias`), module });
  }
  if (weights.lora.targets.has(name) && magnitude === undefined && !isEmbedding) plan.rows.set(name, module);
  else plan.changes.set(weight, { ...plan.changes.get(weight), module });
  return true;
}

/** Whether a table is the model's head too, which an adapter of the table leaves alone. */
const isTied = (name: string, weights: Weights): boolean =>
  /(?:embed_tokens|shared)\.weight$/.test(name) &&
  !['lm_head.weight', 'language_model.lm_head.weight'].some((head) => weights.has(head));

function tied({ name }: TensorEntry): QFormerError {
  const message = `${name}: an adapter of embeddings that are also the head of the model is not supported`;
  return new QFormerError('UNSUPPORTED', message, { tensor: name });
}

const isFloat = ({ dtype }: TensorEntry): boolean => /^(?:F32|F16|BF16)$/.test(dtype);

const isShape = ({ shape }: TensorEntry, expected: readonly number[]): boolean =>
  shape.length === expected.length && shape.every((extent, i) => extent === expected[i]);

const wrong = ({ name, shape }: TensorEntry, expected: readonly number[]): string =>
  `${name} is [${shape.join(', ')}], must be [${expected.join(', ')}]`;

function misfit({ dir }: AdapterFiles, unmatched: string[], mismatched: string[]): QFormerError {
  const list = (title: string, names: string[]) =>
    names.length > 0 && `${title} (${names.length}): ${names.join(', ')}`;
  const parts = [list('not part of the model', unmatched), list('wrong', mismatched)].filter(Boolean);
  const message = `${dir}: the adapter does not fit the model\n  ${parts.join('\n  ')}`;
  return new QFormerError('FORMAT', message, { unmatched, mismatched });
}
