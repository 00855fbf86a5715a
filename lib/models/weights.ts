// The weights of one model: what its modules declared, matched against what the checkpoint stores, then loaded.
// declare (while modules are built) → check (one error names everything that does not fit) → load.
// Files are memory-mapped. On the CPU matrices are used in place in the stored dtype, so that loading costs address space, not
// time; f32 vectors, converted and stacked matrices are copies. On a GPU everything is uploaded from the mapping and converted
// there, once, to the dtype of the activations. Weights that are quantised on load are read through a mapping of their own, which
// ends with each: the process never holds more of them than one tensor as stored. Nothing passes through JavaScript memory.

import type { CheckpointFiles } from '../io/checkpoint.js';
import type { TensorEntry } from '../io/safetensors.js';
import { QFormerError } from '../errors.js';
import { LoraContext } from '../nn/lora.js';
import { ANY, Parameter, type Activations, type ParameterSource } from '../nn/parameter.js';
import { dtypeSize, keep, MappedFile, ops, scope, Tensor, type Dtype } from '../tensor/index.js';
import { chooseActivations } from './activations.js';
import { STORED_DTYPES, storedTensor } from './stored-tensor.js';
import { WeightVariant, type WeightChange } from './weight-variant.js';

/**
 * Where weights live and in which dtype. On the CPU 'auto' keeps matrices as stored and 'bf16' also multiplies, and attends, in bf16; on a
 * device that computes in 16 bits the dtype is that of the activations too, and 'auto' chooses one (activations.ts).
 */
export interface WeightsOptions {
  device: string;
  dtype: 'auto' | 'f32' | 'f16' | 'bf16';
  /** Store linear layers in groups of integers with a scale: the language model's of 8 or 4 bits, the vision tower's and a head that is no table of 8. */
  quantize?: 'int8' | 'int4';
  /** Round what quantised layers, but the head, are multiplied with to 8 bits, where the device gains by it. */
  quantizeActivations?: boolean;
}

/** Bytes of stored weights, as they are materialised. */
export interface LoadProgress {
  loaded: number;
  total: number;
}

/** Options of `Weights.load`. */
export interface LoadOptions {
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
}

interface Declaration {
  parameter: Parameter;
  kind: 'matrix' | 'linear' | 'vector';
  declared: readonly number[];
  /** Its place in a stacked parameter. */
  part?: number;
}

// The Q-Former and the projections are a fiftieth of a model, and everything about an image passes through them.
const NEVER_QUANTIZED = /^(?:qformer|(?:language|vision|text)_projection|itm_head)\./;
// Of the demonstration model, a vision tower in 4 bits loses 2 to 5 points of accuracy, in 8 bits none. Nothing after the head
// could make up for its errors.
const AT_LEAST_INT8 = /^vision_model\.|(?:^|\.)lm_head\./;
/** Columns that share a scale, at most. */
const QUANTIZED_GROUP = 64;

// often enough for an abort to be noticed within some ten milliseconds even when every matrix is converted
const BYTES_BETWEEN_PAUSES = 32 * 2 ** 20;

/** The parameters of one model and the files behind them. Owns both until `dispose`. */
export class Weights implements ParameterSource {
  readonly math: 'f32' | 'bf16';
  readonly quantMath: 'f32' | 'int8';
  readonly activations: Activations;
  readonly lora = new LoraContext();
  readonly #declarations = new Map<string, Declaration>();
  readonly #constants: { parameter: Parameter; values: Float32Array }[] = [];
  readonly #derived: { parameter: Parameter; compute: () => Tensor }[] = [];
  readonly #stacks = new Map<Parameter, Tensor>();
  readonly #ignored: string[] = [];
  readonly #files: MappedFile[] = [];
  readonly #tensors: Tensor[] = [];

  constructor(
    readonly checkpoint: CheckpointFiles,
    readonly options: WeightsOptions,
  ) {
    this.activations = chooseActivations(checkpoint, options);
    this.math = options.dtype === 'bf16' && this.activations === 'f32' ? 'bf16' : 'f32';
    this.quantMath = options.quantizeActivations === true ? 'int8' : 'f32';
  }

  matrix(name: string, shape: readonly number[], { quantizable } = { quantizable: false }): Parameter {
    return this.#declare(name, shape, quantizable && !NEVER_QUANTIZED.test(name) ? 'linear' : 'matrix');
  }

  vector(name: string, shape: readonly number[]): Parameter {
    return this.#declare(name, shape, 'vector');
  }

  stackedMatrix(names: readonly string[], shape: readonly number[]): Parameter {
    return this.#declareStack(names, shape, 'matrix');
  }

  stackedVector(names: readonly string[], shape: readonly number[]): Parameter {
    return this.#declareStack(names, shape, 'vector');
  }

  derived(name: string, shape: readonly number[], compute: () => Tensor): Parameter {
    const parameter = new Parameter(name, shape);
    this.#derived.push({ parameter, compute });
    return parameter;
  }

  constant(name: string, values: Float32Array, shape: readonly number[]): Parameter {
    const parameter = new Parameter(name, shape);
    this.#constants.push({ parameter, values });
    return parameter;
  }

  ignore(name: string): void {
    this.#ignored.push(name);
  }

  /** Whether the model has a parameter of this name, alone or in a stack. */
  has(name: string): boolean {
    return this.#declarations.has(name);
  }

  /** Bytes of the loaded tensors. */
  get bytes(): number {
    return this.#tensors.reduce((sum, tensor) => sum + tensor.size * dtypeSize(tensor.dtype), 0);
  }

  /** Throws one FORMAT error naming every missing, surplus and mis-shaped tensor; details: missing, surplus, mismatched. */
  check(): void {
    const missing: string[] = [];
    const mismatched: string[] = [];
    for (const [name, declaration] of this.#declarations) {
      const entry = this.checkpoint.tensors.get(name);
      if (entry === undefined) missing.push(name);
      else mismatched.push(...mismatch(entry, declaration.declared));
    }
    const surplus = [...this.checkpoint.tensors.keys()].filter((name) => !this.#isExpected(name));
    if (missing.length + surplus.length + mismatched.length === 0) return;
    const list = (title: string, names: string[]) =>
      names.length > 0 && `${title} (${names.length}): ${names.join(', ')}`;
    const parts = [list('missing', missing), list('not part of the model', surplus), list('wrong', mismatched)];
    const message = `${this.checkpoint.dir}: the tensors do not fit the model\n  ${parts.filter(Boolean).join('\n  ')}`;
    throw new QFormerError('FORMAT', message, { missing, surplus, mismatched });
  }

  /** Checks, maps the files and gives every parameter its tensor; on failure or abort (ABORTED) everything is released. */
  async load({ signal, onProgress }: LoadOptions = {}): Promise<void> {
    this.check();
    try {
      throwIfAborted(signal);
      for (const { parameter, values } of this.#constants) {
        this.#own(parameter, () => Tensor.fromArray(values, [...parameter.shape], { device: this.options.device }));
      }
      await this.#loadStored(signal, onProgress);
      for (const { parameter, compute } of this.#derived) this.#own(parameter, compute);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * The parameters that `changes` name, computed anew: each change gets the tensor as the model would keep it, unquantised, and
   * returns one of the same shape and dtype. What is derived of parameters follows. INTERNAL for an unknown name.
   */
  variant(changes: ReadonlyMap<string, WeightChange>): WeightVariant {
    const variant = new WeightVariant();
    try {
      for (const [name, change] of changes) this.#change(variant, name, change);
      variant.swap();
      for (const { parameter, compute } of this.#derived) variant.derive(parameter, compute);
      variant.swap();
      return variant;
    } catch (error) {
      variant.dispose();
      throw error;
    }
  }

  #change(variant: WeightVariant, name: string, change: WeightChange): void {
    const [declaration, entry] = [this.#declarations.get(name), this.checkpoint.tensors.get(name)];
    if (declaration === undefined || entry === undefined) throw new QFormerError('INTERNAL', `no parameter ${name}`);
    const { parameter, kind, part } = declaration;
    const stored = STORED_DTYPES[entry.dtype]!;
    const group = this.#groupOf(declaration);
    const wanted = group === undefined ? this.#dtypeOf(kind, stored) : 'f32';
    const file = MappedFile.open(entry.file);
    const changed = (): Tensor => {
      const read = storedTensor(file, entry, this.options.device);
      return change(wanted === stored ? read : read.cast(wanted));
    };
    try {
      if (part !== undefined) {
        const stack = variant.stackOf(parameter);
        const rows = entry.shape[0]!;
        return scope(() => stack.slice(0, part * rows, (part + 1) * rows).copyFrom(changed()));
      }
      if (group === undefined) return variant.add(parameter, scope(changed));
      variant.add(
        parameter,
        scope(() => ops.quantize(changed(), { bits: this.#bitsOf(parameter), group })),
      );
    } finally {
      file.close();
    }
  }

  /** Frees all tensors and unmaps the files. */
  dispose(): void {
    for (const { parameter } of [...this.#declarations.values(), ...this.#constants, ...this.#derived]) {
      parameter.assign(undefined);
    }
    this.#stacks.clear();
    for (const tensor of this.#tensors.splice(0)) tensor.dispose();
    for (const file of this.#files.splice(0)) file.close();
  }

  async #loadStored(signal: AbortSignal | undefined, onProgress: LoadOptions['onProgress']): Promise<void> {
    const work = [...this.#declarations].map(([name, declaration]) => {
      return { entry: this.checkpoint.tensors.get(name)!, ...declaration };
    });
    work.sort((a, b) =>
      a.entry.file === b.entry.file ? a.entry.offset - b.entry.offset : a.entry.file < b.entry.file ? -1 : 1,
    );
    const total = work.reduce((sum, { entry }) => sum + entry.bytes, 0);
    const files = new Map<string, MappedFile>();
    let loaded = 0;
    let pauseAt = 0;
    for (const { entry, ...declaration } of work) {
      if (loaded >= pauseAt) {
        pauseAt = loaded + BYTES_BETWEEN_PAUSES;
        await new Promise((resolve) => setImmediate(resolve));
        throwIfAborted(signal);
      }
      const group = this.#groupOf(declaration);
      if (group === undefined) {
        const file = files.get(entry.file) ?? this.#open(entry.file);
        files.set(entry.file, file);
        this.#load(file, entry, declaration);
      } else this.#quantize(entry, declaration.parameter, group);
      loaded += entry.bytes;
      onProgress?.({ loaded, total });
    }
  }

  #load(file: MappedFile, entry: TensorEntry, { parameter, kind, part }: Declaration): void {
    const stored = STORED_DTYPES[entry.dtype]!;
    const read = () => storedTensor(file, entry, this.options.device);
    const wanted = this.#dtypeOf(kind, stored);
    if (part === undefined) return this.#own(parameter, () => (wanted === stored ? read() : read().cast(wanted)));
    let stack = this.#stacks.get(parameter);
    if (stack === undefined) {
      const options = { dtype: wanted, device: this.options.device };
      this.#own(parameter, () => Tensor.empty(parameter.shape, options));
      this.#stacks.set(parameter, (stack = parameter.tensor));
    }
    const rows = entry.shape[0]!;
    scope(() => stack.slice(0, part * rows, (part + 1) * rows).copyFrom(read()));
  }

  #quantize(entry: TensorEntry, parameter: Parameter, group: number): void {
    const bits = this.#bitsOf(parameter);
    const file = MappedFile.open(entry.file);
    try {
      const { q, scales } = scope(() => ops.quantize(storedTensor(file, entry, this.options.device), { bits, group }));
      this.#tensors.push(keep(q), keep(scales));
      parameter.assign({ q, scales });
    } finally {
      file.close();
    }
  }

  #bitsOf({ name }: Parameter): 4 | 8 {
    return this.options.quantize === 'int8' || AT_LEAST_INT8.test(name) ? 8 : 4;
  }

  /** Columns that share a scale where the parameter is to be quantised: as many as fit, an even divisor of all. */
  #groupOf({ kind, parameter }: Declaration): number | undefined {
    const { quantize } = this.options;
    const columns = parameter.shape.at(-1)!;
    if (quantize === undefined || kind !== 'linear' || columns % 2 !== 0) return undefined;
    let group = QUANTIZED_GROUP;
    while (columns % group !== 0) group -= 2;
    return group;
  }

  /** The dtype in which a stored tensor is kept. */
  #dtypeOf(kind: Declaration['kind'], stored: Dtype): Dtype {
    if (kind === 'vector') return 'f32';
    if (this.activations !== 'f32') return this.activations;
    const { dtype } = this.options;
    return dtype === 'auto' ? stored : dtype;
  }

  #own(parameter: Parameter, make: () => Tensor): void {
    const tensor = keep(scope(make));
    this.#tensors.push(tensor);
    parameter.assign(tensor);
  }

  #open(path: string): MappedFile {
    const file = MappedFile.open(path);
    this.#files.push(file);
    return file;
  }

  #declare(name: string, declared: readonly number[], kind: Declaration['kind']): Parameter {
    if (this.#declarations.has(name)) throw new QFormerError('INTERNAL', `parameter ${name} is declared twice`);
    const stored = this.checkpoint.tensors.get(name)?.shape;
    const shape = declared.map((size, axis) => (size === ANY ? (stored?.[axis] ?? ANY) : size));
    const parameter = new Parameter(name, shape);
    this.#declarations.set(name, { parameter, kind, declared });
    return parameter;
  }

  // Parts may be stored in different dtypes; the first one read decides, and the others are converted.
  #declareStack(names: readonly string[], declared: readonly number[], kind: Declaration['kind']): Parameter {
    const [rows = 0, ...rest] = declared;
    const stack = new Parameter(names.join('+'), [names.length * rows, ...rest]);
    names.forEach((name, index) => {
      this.#declare(name, declared, kind);
      this.#declarations.set(name, { parameter: stack, kind, declared, part: index });
    });
    return stack;
  }

  #isExpected(name: string): boolean {
    if (this.#declarations.has(name)) return true;
    return this.#ignored.some((ignored) => (ignored.endsWith('.') ? name.startsWith(ignored) : name === ignored));
  }
}

function mismatch(entry: TensorEntry, declared: readonly number[]): string[] {
  const { name, shape, dtype } = entry;
  const fits =
    shape.length === declared.length &&
    declared.every((size, i) => size === shape[i] || (size === ANY && shape[i]! > 0));
  const want = declared.map((size) => (size === ANY ? 'any' : size)).join(', ');
  if (!fits) return [`${name} is [${shape.join(', ')}], must be [${want}]`];
  return STORED_DTYPES[dtype] === undefined ? [`${name} is ${dtype}, must be F32, F16 or BF16`] : [];
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new QFormerError('ABORTED', 'loading was aborted', {}, { cause: signal.reason });
}
