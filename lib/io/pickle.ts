// A pickle machine that can describe tensors and do nothing else. It has values, tuples, lists, dicts and a fixed table of names
// (PyTorch's storages, two functions that rebuild tensors, OrderedDict); a name outside the table ends it at once, whether or not
// it would be called. It never looks up, calls or builds anything of JavaScript from the file. Sizes, opcodes, stack and memo are
// bounded, containers hold references and are never walked, so neither nesting nor sharing can blow it up.
// Opcodes: CPython's Lib/pickletools.py; what PyTorch writes: torch/serialization.py, torch/_utils.py.

import { QFormerError, describe } from '../errors.js';
import type { StoredDtype } from './safetensors.js';

/** Bytes of a storage entry of the archive, as elements of one type. */
export interface StorageRef {
  kind: 'storage';
  key: string;
  dtype: StoredDtype;
  elements: number;
}

/** A tensor over a storage; offset and stride count elements. */
export interface TensorRef {
  kind: 'tensor';
  storage: StorageRef;
  offset: number;
  shape: number[];
  stride: number[];
}

/** What a tensor file can hold. A `Map` stands for dict and OrderedDict. */
export type PickleValue =
  | null
  | boolean
  | number
  | string
  | PickleValue[]
  | Map<PickleValue, PickleValue>
  | { kind: 'tuple'; items: PickleValue[] }
  | { kind: 'global'; name: string }
  | StorageRef
  | TensorRef;

const STORAGES: ReadonlyMap<string, StoredDtype> = new Map([
  ['torch.FloatStorage', 'F32'],
  ['torch.HalfStorage', 'F16'],
  ['torch.BFloat16Storage', 'BF16'],
  ['torch.DoubleStorage', 'F64'],
  ['torch.LongStorage', 'I64'],
  ['torch.IntStorage', 'I32'],
  ['torch.ShortStorage', 'I16'],
  ['torch.CharStorage', 'I8'],
  ['torch.ByteStorage', 'U8'],
  ['torch.BoolStorage', 'BOOL'],
]);
const ORDERED_DICT = 'collections.OrderedDict';
const REBUILD_TENSOR = 'torch._utils._rebuild_tensor_v2';
const REBUILD_PARAMETER = 'torch._utils._rebuild_parameter';
const NAMES = new Set([...STORAGES.keys(), ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER]);

const MAX_OPCODES = 2 ** 21;
const MAX_MEMO = 2 ** 20;
const MAX_STACK = 2 ** 20;
const MAX_MARKS = 256;
const MAX_STRING = 2 ** 16;
const MAX_NAME = 256;
const MAX_RANK = 8;

/** Runs the pickle in `bytes` and returns its value; `file` is used in messages. Throws FORMAT. */
export function readPickle(bytes: Uint8Array, file: string): PickleValue {
  return new PickleMachine(bytes, file).run();
}

class PickleMachine {
  readonly #view: DataView;
  readonly #stack: PickleValue[] = [];
  /** Stack heights. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, PickleValue>();
  #at = 0;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly file: string,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): PickleValue {
    for (let count = 0; count < MAX_OPCODES; count++) {
      const opcode = this.#u8();
      if (opcode === 0x2e) {
        const value = this.#pop();
        if (this.#stack.length > 0) throw this.#fault('values are left on the stack');
        return value;
      }
      this.#execute(opcode);
      if (this.#stack.length > MAX_STACK) throw this.#fault(`more than ${MAX_STACK} values on the stack`);
    }
    throw this.#fault(`more than ${MAX_OPCODES} opcodes`);
  }

  #execute(opcode: number): void {
    switch (opcode) {
      case 0x80: // PROTO
        return this.#protocol();
      case 0x95: // FRAME: a hint for readers
        return void this.#take(8);
      case 0x28: // MARK
        if (this.#marks.length >= MAX_MARKS) throw this.#fault(`nested more than ${MAX_MARKS} deep`);
        return void this.#marks.push(this.#stack.length);
      case 0x30: // POP
        return void this.#pop();
      case 0x4e: // NONE
        return this.#push(null);
      case 0x88: // NEWTRUE
      case 0x89: // NEWFALSE
        return this.#push(opcode === 0x88);
      case 0x4b: // BININT1
        return this.#push(this.#u8());
      case 0x4d: // BININT2
        return this.#push(this.#view.getUint16(this.#take(2), true));
      case 0x4a: // BININT
        return this.#push(this.#view.getInt32(this.#take(4), true));
      case 0x8a: // LONG1
        return this.#push(this.#long(this.#u8()));
      case 0x47: // BINFLOAT
        return this.#push(this.#view.getFloat64(this.#take(8)));
      case 0x58: // BINUNICODE
        return this.#push(this.#text(this.#u32()));
      case 0x8c: // SHORT_BINUNICODE
        return this.#push(this.#text(this.#u8()));
      case 0x5d: // EMPTY_LIST
        return this.#push([]);
      case 0x7d: // EMPTY_DICT
        return this.#push(new Map());
      case 0x29: // EMPTY_TUPLE
        return this.#push({ kind: 'tuple', items: [] });
      case 0x74: // TUPLE
        return this.#push({ kind: 'tuple', items: this.#popMark() });
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        return this.#push({ kind: 'tuple', items: this.#popMany(opcode - 0x84) });
      case 0x61: // APPEND
        return this.#append(this.#popMany(1));
      case 0x65: // APPENDS
        return this.#append(this.#popMark());
      case 0x73: // SETITEM
        return this.#setItems(this.#popMany(2));
      case 0x75: // SETITEMS
        return this.#setItems(this.#popMark());
      case 0x71: // BINPUT
        return this.#remember(this.#u8());
      case 0x72: // LONG_BINPUT
        return this.#remember(this.#u32());
      case 0x94: // MEMOIZE
        return this.#remember(this.#memo.size);
      case 0x68: // BINGET
        return this.#push(this.#recall(this.#u8()));
      case 0x6a: // LONG_BINGET
        return this.#push(this.#recall(this.#u32()));
      case 0x63: // GLOBAL
        return this.#global(this.#line(), this.#line());
      case 0x93: // STACK_GLOBAL
        return this.#stackGlobal();
      case 0x51: // BINPERSID
        return this.#push(this.#storage(this.#pop()));
      case 0x52: // REDUCE
        return this.#reduce();
      case 0x62: // BUILD: attributes of an OrderedDict, which hold versions of modules
        return this.#build();
      case 0x69: // INST: names a class and calls it
        throw this.#refused(`${this.#line()}.${this.#line()}`);
      default:
        throw this.#fault(`opcode 0x${opcode.toString(16).padStart(2, '0')} is not one that tensor files use`);
    }
  }

  #protocol(): void {
    const version = this.#u8();
    if (version > 5) throw this.#fault(`pickle protocol ${version} is unknown`);
  }

  #stackGlobal(): void {
    const [module, name] = this.#popMany(2);
    if (typeof module !== 'string' || typeof name !== 'string') throw this.#fault('a name must be two strings');
    this.#global(module, name);
  }

  #global(module: string, attribute: string): void {
    const name = `${module}.${attribute}`;
    if (!NAMES.has(name)) throw this.#refused(name);
    this.#push({ kind: 'global', name });
  }

  #reduce(): void {
    const [callee, argument] = this.#popMany(2) as [PickleValue, PickleValue];
    const items = tupleItems(argument);
    const name = isKind(callee, 'global') ? callee.name : undefined;
    if (name === undefined || items === undefined) throw this.#fault('calls what is no function');
    if (name === ORDERED_DICT && items.length === 0) return this.#push(new Map());
    if (name === REBUILD_TENSOR) return this.#push(this.#tensor(items));
    if (name === REBUILD_PARAMETER && items[0] !== undefined && isKind(items[0], 'tensor')) return this.#push(items[0]);
    throw this.#fault(`calls ${name} with what it does not take`);
  }

  #build(): void {
    this.#pop();
    if (!(this.#stack.at(-1) instanceof Map)) throw this.#fault('sets the state of what is no OrderedDict');
  }

  /** ('storage', type, key, device, elements) */
  #storage(id: PickleValue): StorageRef {
    const [tag, type, key, , elements] = tupleItems(id) ?? [];
    const dtype = type !== undefined && isKind(type, 'global') ? STORAGES.get(type.name) : undefined;
    if (tag !== 'storage' || dtype === undefined || typeof key !== 'string' || !isSize(elements)) {
      throw this.#fault('a persistent id is not that of a storage');
    }
    return { kind: 'storage', key, dtype, elements };
  }

  /** (storage, offset, size, stride, requires_grad, hooks[, metadata]) */
  #tensor(items: readonly PickleValue[]): TensorRef {
    const [storage, offset, size, strides] = items;
    const [shape, stride] = [sizes(size), sizes(strides)];
    if (
      storage === undefined ||
      !isKind(storage, 'storage') ||
      !isSize(offset) ||
      shape === undefined ||
      stride === undefined
    ) {
      throw this.#fault('a tensor is rebuilt from other things than storage, offset, size and stride');
    }
    if (shape.length > MAX_RANK || stride.length !== shape.length) {
      throw this.#fault(`a tensor has ${shape.length} dimensions and ${stride.length} strides`);
    }
    return { kind: 'tensor', storage, offset, shape, stride };
  }

  #append(items: readonly PickleValue[]): void {
    const list = this.#stack.at(-1);
    if (!Array.isArray(list)) throw this.#fault('appends to what is no list');
    for (const item of items) list.push(item);
  }

  #setItems(items: readonly PickleValue[]): void {
    const dict = this.#stack.at(-1);
    if (!(dict instanceof Map) || items.length % 2 !== 0) throw this.#fault('sets items of what is no dict');
    for (let i = 0; i < items.length; i += 2) {
      const [key, value] = [items[i]!, items[i + 1]!];
      if (dict.has(key)) throw this.#fault(`the key ${describe(key)} is set twice`);
      dict.set(key, value);
    }
  }

  #remember(index: number): void {
    if (this.#memo.size >= MAX_MEMO) throw this.#fault(`more than ${MAX_MEMO} values in the memo`);
    if (this.#stack.length === 0) throw this.#fault('the stack is empty');
    this.#memo.set(index, this.#stack.at(-1)!);
  }

  #recall(index: number): PickleValue {
    if (!this.#memo.has(index)) throw this.#fault(`there is no value ${index} in the memo`);
    return this.#memo.get(index)!;
  }

  #push(value: PickleValue): void {
    this.#stack.push(value);
  }

  #pop(): PickleValue {
    return this.#popMany(1)[0]!;
  }

  #popMany(count: number): PickleValue[] {
    if (this.#stack.length - (this.#marks.at(-1) ?? 0) < count) throw this.#fault('the stack is empty');
    return this.#stack.splice(this.#stack.length - count);
  }

  #popMark(): PickleValue[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.#fault('there is no mark');
    return this.#stack.splice(mark);
  }

  /** Where `count` bytes begin, which are read by this. */
  #take(count: number): number {
    const start = this.#at;
    if (count > this.bytes.length - start) throw this.#fault('truncated');
    this.#at += count;
    return start;
  }

  #u8(): number {
    return this.#view.getUint8(this.#take(1));
  }

  #u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  #text(length: number): string {
    if (length > MAX_STRING) throw this.#fault(`a string of ${length} bytes`);
    const start = this.#take(length);
    return new TextDecoder().decode(this.bytes.subarray(start, start + length));
  }

  #line(): string {
    const end = this.bytes.subarray(this.#at, this.#at + MAX_NAME).indexOf(0x0a);
    if (end < 0) throw this.#fault(`a name without an end within ${MAX_NAME} bytes`);
    const text = this.#text(end);
    this.#take(1);
    return text;
  }

  /** A little-endian integer in two's complement. */
  #long(length: number): number {
    if (length > 8) throw this.#fault(`an integer of ${length} bytes`);
    const start = this.#take(length);
    let value = 0n;
    for (let i = 0; i < length; i++) value |= BigInt(this.bytes[start + i]!) << BigInt(8 * i);
    const signed = Number(BigInt.asIntN(8 * length, value));
    if (!Number.isSafeInteger(signed)) throw this.#fault(`the integer ${signed}`);
    return signed;
  }

  #refused(name: string): QFormerError {
    const message = `${this.file}: refused: the pickle names ${describe(name)}, which is not part of a tensor file; nothing was executed`;
    return new QFormerError('FORMAT', message, { file: this.file, global: name });
  }

  #fault(message: string): QFormerError {
    return new QFormerError('FORMAT', `${this.file}: pickle, byte ${this.#at}: ${message}`, { file: this.file });
  }
}

function isKind<K extends 'global' | 'storage' | 'tensor'>(
  value: PickleValue,
  kind: K,
): value is Extract<PickleValue, { kind: K }> {
  return typeof value === 'object' && value !== null && 'kind' in value && value.kind === kind;
}

function tupleItems(value: PickleValue): PickleValue[] | undefined {
  return typeof value === 'object' && value !== null && 'kind' in value && value.kind === 'tuple'
    ? value.items
    : undefined;
}

function sizes(value: PickleValue | undefined): number[] | undefined {
  const items = value === undefined ? undefined : tupleItems(value);
  return items?.every(isSize) ? items : undefined;
}

function isSize(value: PickleValue | undefined): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
