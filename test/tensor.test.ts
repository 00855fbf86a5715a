// Tensors as handles: creation, views, transfers, disposal and scopes.

import { describe, expect, it } from 'vitest';
import { Tensor, keep, liveTensors, ops, scope } from '../lib/tensor/index.js';
import { expectDevices, testDevices } from './support/devices.js';
import { expectNoLeaks } from './support/fixtures.js';

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
const failure = (code: string, message: RegExp): unknown =>
  expect.objectContaining({ code, message: expect.stringMatching(message) });

expectDevices();

describe.each(testDevices)('a tensor on %s', (device) => {
  expectNoLeaks();
  const on = { device };

  it.each([
    ['f32', new Float32Array([1.5, -2, 3e38, 0, 7, -0])],
    ['i32', new Int32Array([1, -2, 2147483647, 0, 7, 9])],
    ['u8', new Uint8Array([1, 2, 255, 0, 7, 9])],
  ] as const)('of %s returns the elements it was made from', (dtype, data) => {
    using x = Tensor.fromArray(data, [2, 3], on);
    expect(x.dtype).toBe(dtype);
    expect(x.shape).toEqual([2, 3]);
    expect(x.size).toBe(6);
    expect(x.toArray()).toEqual(data);
  });

  it('holds f16 and bf16 as bits and converts them', () => {
    using half = Tensor.fromArray(new Uint16Array([0x3c00, 0xc000, 0x7c00]), [3], { dtype: 'f16', ...on });
    using brain = Tensor.fromArray(new Uint16Array([0x3f80, 0xc000, 0x7f80]), [3], { dtype: 'bf16', ...on });
    expect([...half.toFloat32()]).toEqual([1, -2, Infinity]);
    expect([...brain.toFloat32()]).toEqual([1, -2, Infinity]);
    expect(half.toArray()).toEqual(new Uint16Array([0x3c00, 0xc000, 0x7c00]));
  });

  it.each(['f16', 'bf16'] as const)('rounds to the nearest even when cast to %s', (dtype) => {
    // the midpoint between two neighbours goes to the one whose last bit is 0, just above it to the upper one
    const step = dtype === 'f16' ? 2 ** -10 : 2 ** -7;
    const values = [1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, -1 - step / 2];
    using x = Tensor.fromArray(values, [4], on);
    using y = x.cast(dtype);
    expect([...y.toFloat32()]).toEqual([1, 1 + 2 * step, 1 + step, -1]);
  });

  it('may be empty', () => {
    using x = Tensor.zeros([0, 7], on);
    expect(x.toArray()).toEqual(new Float32Array(0));
  });

  it('shares memory with its views', () =>
    scope(() => {
      const x = Tensor.fromArray(range(24), [2, 3, 4], on);
      expect([...x.select(0, 1).slice(0, 1, 3).toArray()]).toEqual(range(24).slice(16));
      expect([...x.slice(-1, 1, 3).toArray()]).toEqual([1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22]);
      expect([...x.reshape([6, 4]).transpose(0, 1).select(0, 2).toArray()]).toEqual([2, 6, 10, 14, 18, 22]);
      x.select(0, 0).write(new Float32Array(12).fill(-1));
      expect([...x.toArray()].slice(10, 14)).toEqual([-1, -1, 12, 13]);
      x.slice(2, 0, 1).copyFrom(Tensor.zeros([2, 3, 1], on));
      expect(x.toArray()[12]).toBe(0);
    }));

  it('keeps its memory alive through a view after it was disposed', () => {
    const x = Tensor.fromArray(range(6), [2, 3], on);
    const row = x.select(0, 1);
    x.dispose();
    expect([...row.toArray()]).toEqual([3, 4, 5]);
    row.dispose();
  });

  it('throws STALE_TENSOR once disposed, and may be disposed twice', () => {
    const x = Tensor.zeros([2], on);
    x.dispose();
    x.dispose();
    expect(x.disposed).toBe(true);
    expect(() => x.shape).toThrow(failure('STALE_TENSOR', /disposed/));
    expect(() => x.toArray()).toThrow(failure('STALE_TENSOR', /disposed/));
    using y = Tensor.zeros([2], on); // takes the freed slot: the old handle must not name it
    expect(() => ops.add(x, y)).toThrow(failure('STALE_TENSOR', /disposed/));
  });

  it.each([
    [() => Tensor.zeros([-1], on), 'SHAPE', /negative/],
    [() => Tensor.zeros([1.5], on), 'INVALID_ARGUMENT', /integers/],
    [() => Tensor.zeros([NaN], on), 'INVALID_ARGUMENT', /integers/],
    [() => Tensor.zeros([2 ** 40, 2 ** 40], on), 'SHAPE', /too many/],
    [() => Tensor.zeros([2 ** 45], on), 'OUT_OF_MEMORY', /bytes/],
    [() => Tensor.zeros([1, 1, 1, 1, 1], on), 'SHAPE', /at most 4/],
    [() => Tensor.zeros('2' as never, on), 'INVALID_ARGUMENT', /array/],
    [() => Tensor.zeros([2], { dtype: 'f64' as never, ...on }), 'INVALID_ARGUMENT', /dtype/],
    [() => Tensor.zeros([2], { device: 'tpu' }), 'DEVICE', /no device 'tpu' \(found: cpu/],
    [() => Tensor.fromArray([1, 2, 3], [2], on), 'SHAPE', /8 bytes, got 12/],
    [() => Tensor.fromArray(new Uint16Array(2), [2], on), 'DTYPE', /explicit/],
    [() => Tensor.fromArray(new Float32Array(2), [2], { dtype: 'i32', ...on }), 'DTYPE', /cannot hold i32/],
  ])('refuses bad arguments: %s', (make, code, message) => {
    expect(make).toThrow(failure(code, message));
  });

  it.each([
    [(x: Tensor) => x.slice(0, 1, 9), 'INVALID_ARGUMENT', /not within/],
    [(x: Tensor) => x.slice(0, 2, 1), 'INVALID_ARGUMENT', /not within/],
    [(x: Tensor) => x.slice(3, 0, 1), 'INVALID_ARGUMENT', /axis 3/],
    [(x: Tensor) => x.select(0, -1), 'INVALID_ARGUMENT', /not within/],
    [(x: Tensor) => x.reshape([5]), 'SHAPE', /as many elements/],
    [(x: Tensor) => x.transpose(0, 1).reshape([6]), 'SHAPE', /contiguous/],
    [(x: Tensor) => x.write(new Float32Array(5)), 'SHAPE', /24 bytes, got 20/],
    [(x: Tensor) => x.copyFrom(x.reshape([3, 2])), 'SHAPE', /must be \[2, 3\]/],
    [(x: Tensor) => x.cast('u8'), 'DTYPE', /does not convert/],
  ])('refuses views and copies that do not fit: %s', (use, code, message) => {
    scope(() => {
      const x = Tensor.fromArray(range(6), [2, 3], on);
      expect(() => use(x)).toThrow(failure(code, message));
    });
  });
});

describe.each(testDevices)('a scope on %s', (device) => {
  expectNoLeaks();
  const on = { device };

  it('frees what was made inside except what it returns', () => {
    const before = liveTensors();
    const { sum, list } = scope(() => {
      const x = Tensor.fromArray([1, 2], [2], on);
      return { sum: ops.add(x, x), list: [ops.affine(x, 3)] };
    });
    expect(liveTensors()).toBe(before + 2);
    expect([...sum.toArray()]).toEqual([2, 4]);
    expect([...list[0]!.toArray()]).toEqual([3, 6]);
    sum.dispose();
    list[0]!.dispose();
  });

  it('hands a returned tensor to the scope around it', () => {
    const before = liveTensors();
    scope(() => {
      const inner = scope(() => Tensor.zeros([3], on));
      expect(inner.disposed).toBe(false);
      return undefined;
    });
    expect(liveTensors()).toBe(before);
  });

  it('frees everything when the function throws', () => {
    const before = liveTensors();
    expect(() =>
      scope(() => {
        Tensor.zeros([3], on);
        scope(() => {
          Tensor.zeros([4], on);
          throw new Error('inside');
        });
      }),
    ).toThrow('inside');
    expect(liveTensors()).toBe(before);
  });

  it('lets keep() take a tensor out', () => {
    let x!: Tensor;
    scope(() => scope(() => void (x = keep(Tensor.fromArray([5], [1], on)))));
    expect([...x.toArray()]).toEqual([5]);
    x.dispose();
  });

  it('refuses a promise and still frees', () => {
    const before = liveTensors();
    expect(() => scope(async () => Tensor.zeros([1], on))).toThrow(failure('INVALID_ARGUMENT', /synchronous/));
    expect(liveTensors()).toBe(before);
  });

  it('does not free tensors made outside that it returns or disposes early', () => {
    using outer = Tensor.zeros([1], on);
    scope(() => {
      Tensor.zeros([2], on).dispose();
      return outer;
    });
    expect(outer.disposed).toBe(false);
  });
});
