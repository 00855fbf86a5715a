// The Tensor class: a thin handle. Shape, dtype and strides live natively, once; results belong to the scope they are made in.

import { QFormerError, describe } from '../errors.js';
import { native, type Handle, type TypedArray } from './binding.js';
import { arrayFor, dtypeCode, dtypeName, dtypeOfArray, type Dtype } from './dtype.js';

/** Where a tensor is made. */
export interface TensorOptions {
  /** Element type; by default that of the data, or f32. */
  dtype?: Dtype;
  /** Device name as {@link devices} lists it; `cpu` by default. */
  device?: string;
}

// Node 18 and early 20 lack the symbol; declaring it here lets `using` work wherever the syntax is compiled down.
const disposeSymbol: typeof Symbol.dispose = (Symbol.dispose ?? Symbol.for('Symbol.dispose')) as typeof Symbol.dispose;

/** A view of device memory with a shape, strides and a dtype. At most 4 axes. Errors: STALE_TENSOR once disposed. */
export class Tensor implements Disposable {
  /** @internal Use the static constructors. */
  constructor(readonly handle: Handle) {}

  /** A tensor with a copy of `data`, in row-major order. Errors: SHAPE when counts differ, OUT_OF_MEMORY. */
  static fromArray(
    data: TypedArray | readonly number[],
    shape: readonly number[],
    options: TensorOptions = {},
  ): Tensor {
    const array = ArrayBuffer.isView(data) ? (data as TypedArray) : arrayFor(options.dtype ?? 'f32', data);
    const dtype = options.dtype ?? dtypeOfArray(array);
    const natural = array instanceof Uint16Array ? dtype === 'f16' || dtype === 'bf16' : dtypeOfArray(array) === dtype;
    if (!natural) throw new QFormerError('DTYPE', `fromArray: a ${array.constructor.name} cannot hold ${dtype}`);
    return new Tensor(native.fromData(array, shape, dtypeCode(dtype), options.device ?? 'cpu'));
  }

  /** A tensor of zeros. */
  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    return new Tensor(native.create(shape, dtypeCode(options.dtype ?? 'f32'), options.device ?? 'cpu', 1));
  }

  /** A tensor with undefined content, to be written. */
  static empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
    return new Tensor(native.create(shape, dtypeCode(options.dtype ?? 'f32'), options.device ?? 'cpu', 0));
  }

  get shape(): number[] {
    return native.shapeOf(this.handle);
  }
  get dtype(): Dtype {
    return dtypeName(native.dtypeOf(this.handle));
  }
  get device(): string {
    return native.deviceOf(this.handle);
  }
  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((product, extent) => product * extent, 1);
  }
  get disposed(): boolean {
    return native.isLive(this.handle) === 0;
  }

  /** A view of the same elements with another shape; dense tensors only. */
  reshape(shape: readonly number[]): Tensor {
    return new Tensor(native.reshape(this.handle, shape));
  }
  /** A view of `[start, end)` along an axis; a negative axis counts from the last. */
  slice(axis: number, start: number, end: number): Tensor {
    return new Tensor(native.slice(this.handle, axis, start, end));
  }
  /** A view of one index along an axis, which disappears. */
  select(axis: number, index: number): Tensor {
    return new Tensor(native.select(this.handle, axis, index));
  }
  /** A view with two axes exchanged. */
  transpose(axisA: number, axisB: number): Tensor {
    return new Tensor(native.transpose(this.handle, axisA, axisB));
  }
  /** A dense copy, or a view of this tensor where it is dense already. */
  contiguous(): Tensor {
    if (native.isDense(this.handle) !== 0) return this.reshape(this.shape);
    return new Tensor(native.cast(this.handle, native.dtypeOf(this.handle)));
  }
  /** A dense copy in another dtype; float dtypes only, rounding to nearest even. */
  cast(dtype: Dtype): Tensor {
    return new Tensor(native.cast(this.handle, dtypeCode(dtype)));
  }

  /** Overwrites the elements of a dense tensor in place. Errors: SHAPE when byte counts differ, DTYPE. */
  write(data: TypedArray | readonly number[]): void {
    const array = ArrayBuffer.isView(data) ? (data as TypedArray) : arrayFor(this.dtype, data);
    native.write(this.handle, array);
  }
  /** Overwrites the elements with those of a tensor of the same shape, converting. */
  copyFrom(source: Tensor): void {
    native.copyInto(this.handle, source.handle);
  }
  /** The elements in row-major order; f16 and bf16 as their bits. */
  toArray(): TypedArray {
    if (native.isDense(this.handle) !== 0) return native.read(this.handle);
    const dense = this.contiguous();
    try {
      return native.read(dense.handle);
    } finally {
      dense.dispose();
    }
  }
  /** The elements as f32, converting f16 and bf16. Errors: DTYPE for i32 and u8. */
  toFloat32(): Float32Array {
    const converted = this.cast('f32');
    try {
      return native.read(converted.handle) as Float32Array;
    } finally {
      converted.dispose();
    }
  }

  /** Frees the tensor now; views of it keep the memory alive. May be called twice. */
  dispose(): void {
    native.dispose(this.handle);
  }
  [disposeSymbol](): void {
    this.dispose();
  }
}

/** INVALID_ARGUMENT unless `value` is a Tensor; `where` names the op and argument. */
export function handleOf(where: string, value: Tensor): Handle {
  if (value instanceof Tensor) return value.handle;
  throw new QFormerError('INVALID_ARGUMENT', `${where} must be a Tensor, got ${describe(value)}`);
}

/** Tensors alive in this JavaScript environment. */
export function liveTensors(): number {
  return native.liveTensors();
}
