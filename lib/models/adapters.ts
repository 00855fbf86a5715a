// The adapters of one loaded model. A low-rank part of a linear layer stays apart from the weights: layers have tables of all
// loaded adapters, and each row of a forward pass names its slot, so that one batch holds requests of several. What cannot be
// added to a product (DoRA, biases, embeddings, whole modules) makes a variant of the parameters concerned, and requests with such
// an adapter run in a pass of their own. Merging puts all of an adapter into a variant; unmerging drops it.

import { readAdapter, type AdapterInfo, type AdapterModule, type AdapterPart } from '../io/adapter.js';
import type { TensorEntry } from '../io/safetensors.js';
import { QFormerError, describe } from '../errors.js';
import { keep, MappedFile, ops, scope, Tensor } from '../tensor/index.js';
import { planAdapter, type AdapterChange, type AdapterPlan } from './adapter-plan.js';
import { storedTensor } from './stored-tensor.js';
import { bytesOf, type WeightChange, type WeightVariant } from './weight-variant.js';
import type { Weights } from './weights.js';

/** A low-rank part in memory: a: [rank, in] f32, b: [out, rank] f32. */
interface LowRank {
  a: Tensor;
  b: Tensor;
  scaling: number;
}

/** A loaded adapter. */
export interface LoadedAdapter {
  info: AdapterInfo;
  /** Differs from that of every other adapter this model has had: caches know results by it. */
  identity: string;
  /** Of its rows in the tables. */
  slot: number;
  rows: Map<string, LowRank>;
  /** Changes that cannot be added row by row. */
  changes: Map<string, WeightChange>;
  /** The model with `changes`. */
  variant: WeightVariant | undefined;
  /** Tensors that `changes` read. */
  owned: Tensor[];
}

/** Loads, applies, merges and frees adapters. Dispose it before the weights. */
export class AdapterSet {
  readonly #loaded = new Map<string, LoadedAdapter>();
  readonly #tables: Tensor[] = [];
  #merged: { adapter: LoadedAdapter; variant: WeightVariant } | undefined;
  #generation = 0;
  /** Grows whenever weights or tables change: what was recorded before reads freed tensors. */
  changes = 0;

  constructor(private readonly weights: Weights) {}

  list(): AdapterInfo[] {
    return [...this.#loaded.values()].map(({ info }) => ({ ...info }));
  }

  /** Bytes of the tensors that loaded and merged adapters hold beside the weights. */
  get bytes(): number {
    const loaded = [...this.#loaded.values()];
    const variants = [...loaded.map(({ variant }) => variant), this.#merged?.variant];
    const tensors = [...loaded.flatMap(({ owned }) => owned), ...this.#tables];
    return variants.reduce((sum, variant) => sum + (variant?.bytes ?? 0), bytesOf(tensors));
  }

  /** INVALID_ARGUMENT naming the loaded ones where `name` is none of them. */
  require(name: string): LoadedAdapter {
    const adapter = this.#loaded.get(name);
    if (adapter !== undefined) return adapter;
    const loaded = [...this.#loaded.keys()];
    const message = `no adapter ${describe(name)} is loaded (${loaded.length > 0 ? `loaded: ${loaded.join(', ')}` : 'none is'})`;
    throw new QFormerError('INVALID_ARGUMENT', message, { adapter: name, loaded });
  }

  /** Loads the folder `dir`. INVALID_ARGUMENT where the name is taken or an adapter is merged; errors of `readAdapter` and `planAdapter`. */
  load(name: string, dir: string): AdapterInfo {
    if (this.#loaded.has(name)) throw invalid(`an adapter '${name}' is loaded already`, name);
    this.#requireUnmerged('load');
    const files = readAdapter(dir);
    const plan = planAdapter(files, this.weights);
    const info = { name, dir, bytes: files.bytes, ...summary(plan), merged: false };
    const adapter: LoadedAdapter = {
      info,
      identity: `${name}#${++this.#generation}`,
      slot: this.#freeSlot(),
      rows: new Map(),
      changes: new Map(),
      variant: undefined,
      owned: [],
    };
    try {
      for (const [layer, module] of plan.rows) adapter.rows.set(layer, this.#lowRank(adapter, module));
      for (const [parameter, change] of plan.changes) {
        adapter.changes.set(parameter, this.#changeOf(adapter, parameter, change));
      }
      if (adapter.changes.size > 0) adapter.variant = this.weights.variant(adapter.changes);
      this.#loaded.set(name, adapter);
      this.#rebuildTables();
    } catch (error) {
      this.#loaded.delete(name);
      free(adapter);
      throw error;
    }
    return { ...info };
  }

  /** Frees an adapter, which no request may be using. */
  unload(name: string): void {
    const adapter = this.require(name);
    if (this.#merged?.adapter === adapter) this.unmerge(name);
    this.#loaded.delete(name);
    free(adapter);
    this.#rebuildTables();
  }

  /** Puts an adapter into the weights. No request may be running. */
  merge(name: string): AdapterInfo {
    const adapter = this.require(name);
    if (this.#merged?.adapter === adapter) return { ...adapter.info };
    this.#requireUnmerged('merge');
    const changes = new Map(adapter.changes);
    for (const [layer, { a, b, scaling }] of adapter.rows) {
      const before = changes.get(`${layer}.weight`);
      changes.set(`${layer}.weight`, (w) => ops.loraMerge(before?.(w) ?? w, a, b, scaling));
    }
    const variant = this.weights.variant(changes);
    variant.swap();
    this.#merged = { adapter, variant };
    this.changes++;
    adapter.info.merged = true;
    return { ...adapter.info };
  }

  /** Takes a merged adapter out of the weights again: they are what they were, bit for bit. No request may be running. */
  unmerge(name: string): AdapterInfo {
    const adapter = this.require(name);
    if (this.#merged?.adapter !== adapter) throw invalid(`adapter '${name}' is not merged`, name);
    this.#merged.variant.dispose();
    this.#merged = undefined;
    this.changes++;
    adapter.info.merged = false;
    return { ...adapter.info };
  }

  /**
   * By what caches know the results of a request: undefined for the bare model. INVALID_ARGUMENT for an unknown adapter, and for
   * another one than the merged one.
   */
  identityFor(name: string | undefined): string | undefined {
    const adapter = name === undefined ? undefined : this.require(name);
    const merged = this.#merged?.adapter;
    if (merged === undefined) return adapter?.identity;
    if (adapter === undefined || adapter === merged) return `${merged.identity} merged`;
    throw invalid(`adapter '${name}' cannot be used while '${merged.info.name}' is merged`, adapter.info.name);
  }

  /** The adapter that a pass has to apply; undefined for none, and for the merged one. */
  active(identity: string | undefined): LoadedAdapter | undefined {
    return identity === undefined ? undefined : this.#find((adapter) => adapter.identity === identity);
  }

  /** What of `identity` the results of these parts depend on: undefined where they are those of the bare model. */
  identityOf(identity: string | undefined, parts: readonly AdapterPart[]): string | undefined {
    if (identity === undefined) return undefined;
    const plain = identity.replace(/ merged$/, '');
    const adapter = this.#find((other) => other.identity === plain);
    return adapter?.info.parts.some((part) => parts.includes(part)) ? identity : undefined;
  }

  /** Runs `pass` with one adapter for everything in it. */
  during<T>(adapter: LoadedAdapter | undefined, pass: () => T): T {
    if (adapter === undefined) return pass();
    const withRows = (): T => (adapter.rows.size > 0 ? this.weights.lora.during(adapter.slot, pass) : pass());
    return adapter.variant === undefined ? withRows() : adapter.variant.during(withRows);
  }

  /** Runs `pass` with a slot for each of its rows, [rows] i32; adapters with a variant have passes of their own. */
  duringRows<T>(rows: Tensor, pass: () => T): T {
    return this.weights.lora.during(rows, pass);
  }

  dispose(): void {
    this.#merged?.variant.dispose();
    this.#merged = undefined;
    for (const adapter of this.#loaded.values()) free(adapter);
    this.#loaded.clear();
    this.#rebuildTables();
  }

  #find(accept: (adapter: LoadedAdapter) => boolean): LoadedAdapter | undefined {
    for (const adapter of this.#loaded.values()) if (accept(adapter)) return adapter;
    return undefined;
  }

  #requireUnmerged(what: string): void {
    const merged = this.#merged?.adapter.info.name;
    if (merged !== undefined) throw invalid(`${what}: adapter '${merged}' is merged; unmerge it first`, merged);
  }

  #freeSlot(): number {
    const taken = new Set([...this.#loaded.values()].map(({ slot }) => slot));
    let slot = 0;
    while (taken.has(slot)) slot++;
    return slot;
  }

  // Ranks differ from adapter to adapter: shorter ones are filled with zeros, which add nothing.
  #rebuildTables(): void {
    this.changes++;
    for (const tensor of this.#tables.splice(0)) tensor.dispose();
    const { activations: dtype, lora, options } = this.weights;
    const { device } = options;
    for (const [layer, target] of lora.targets) {
      target.table = undefined;
      const users = [...this.#loaded.values()].flatMap(({ slot, rows }) => {
        const part = rows.get(layer);
        return part === undefined ? [] : [{ slot, ...part }];
      });
      if (users.length === 0) continue;
      const slots = Math.max(...[...this.#loaded.values()].map(({ slot }) => slot)) + 1;
      const rank = Math.max(...users.map(({ a }) => a.shape[0]!));
      const scalings = new Float32Array(slots);
      for (const { slot, scaling } of users) scalings[slot] = scaling;
      target.table = scope(() => {
        const a = Tensor.zeros([slots, rank, target.inFeatures], { dtype, device });
        const b = Tensor.zeros([slots, target.outFeatures, rank], { dtype, device });
        for (const { slot, a: from, b: to } of users) {
          const own = from.shape[0]!;
          a.select(0, slot).slice(0, 0, own).copyFrom(from);
          b.select(0, slot).slice(1, 0, own).copyFrom(to);
        }
        return { a, b, scaling: Tensor.fromArray(scalings, [slots], { device }) };
      });
      this.#tables.push(...Object.values(target.table!).map((tensor: Tensor) => keep(tensor)));
    }
  }

  #lowRank(adapter: LoadedAdapter, { a, b, scaling }: AdapterModule): LowRank {
    return { a: this.#read(adapter, a!), b: this.#read(adapter, b!), scaling };
  }

  /** [first axis, the rest] of a stored tensor, f32 */
  #read(adapter: LoadedAdapter, entry: TensorEntry): Tensor {
    const { file, shape } = entry;
    const mapped = MappedFile.open(file);
    try {
      const rows = shape[0]!;
      const stored = scope(() => {
        const flat = [rows, shape.reduce((product, extent) => product * extent, 1) / rows];
        return storedTensor(mapped, entry, this.weights.options.device).reshape(flat).cast('f32');
      });
      adapter.owned.push(keep(stored));
      return stored;
    } finally {
      mapped.close();
    }
  }

  #changeOf(adapter: LoadedAdapter, name: string, { replacement, module }: AdapterChange): WeightChange {
    const whole = replacement === undefined ? undefined : this.#read(adapter, replacement);
    const part = module === undefined ? undefined : this.#partOf(adapter, name, module);
    return (w) => {
      const base = whole === undefined ? w : whole.cast(w.dtype).reshape(w.shape);
      return part === undefined ? base : part(base);
    };
  }

  #partOf(adapter: LoadedAdapter, name: string, module: AdapterModule): WeightChange {
    const { scaling, isEmbedding, magnitude, bias } = module;
    if (name.endsWith('.bias')) {
      const added = this.#read(adapter, bias!);
      return (w) => ops.add(w, ops.affine(added.reshape(w.shape), scaling));
    }
    const { a, b } = this.#lowRank(adapter, module);
    if (isEmbedding) {
      return (w) => ops.loraMerge(w, b.transpose(0, 1).contiguous(), a.transpose(0, 1).contiguous(), scaling);
    }
    const lengths = magnitude === undefined ? undefined : this.#read(adapter, magnitude);
    return (w) => {
      const flat = w.contiguous().reshape([w.shape[0]!, a.shape[1]!]);
      if (lengths === undefined) return ops.loraMerge(flat, a, b, scaling).reshape(w.shape);
      const merged = ops.loraMerge(flat.cast('f32'), a, b, scaling);
      return withRowLengths(merged, lengths.reshape([w.shape[0]!]))
        .cast(w.dtype)
        .reshape(w.shape);
    };
  }
}

/** Every row scaled to its length (Liu et al. 2024, DoRA, section 4.1). w: [out, in] f32, lengths: [out] f32 → [out, in] */
function withRowLengths(w: Tensor, lengths: Tensor): Tensor {
  const columns = w.shape[1]!;
  const ones = Tensor.fromArray(new Float32Array(columns).fill(1), [columns], { device: w.device });
  // rows of length √columns, so that the norm's own formula serves
  const unit = ops.rmsNorm(w, ones, 1e-30).transpose(0, 1).contiguous();
  return ops
    .mul(unit, ops.affine(lengths, columns ** -0.5))
    .transpose(0, 1)
    .contiguous();
}

function free({ variant, owned }: LoadedAdapter): void {
  variant?.dispose();
  for (const tensor of owned.splice(0)) tensor.dispose();
}

const PARTS: readonly [RegExp, AdapterPart][] = [
  [/^vision_model\./, 'vision'],
  [/^(?:qformer|query_tokens|language_projection)(?:\.|$)/, 'qformer'],
];

function summary({ rows, changes }: AdapterPlan): Pick<AdapterInfo, 'modules' | 'rank' | 'parts'> {
  const names = [...rows.keys(), ...changes.keys()];
  const modules = new Set(names.map((name) => name.replace(/\.(?:weight|bias)$/, '')));
  const ranks = [...rows.values(), ...[...changes.values()].map(({ module }) => module)].map(
    (module) => module?.rank ?? 0,
  );
  const parts = new Set(names.map((name) => PARTS.find(([pattern]) => pattern.test(name))?.[1] ?? 'language'));
  return { modules: modules.size, rank: Math.max(...ranks), parts: [...parts] };
}

const invalid = (message: string, adapter: string): QFormerError =>
  new QFormerError('INVALID_ARGUMENT', message, { adapter });
