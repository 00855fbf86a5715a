// The building blocks alone, on every device: what they declare, what they compute where no model exercises it, and that a stack of layers
// holds no more than one layer's tensors.

import { describe, expect, it } from 'vitest';
import { Embedding } from '../lib/nn/embedding.js';
import { Linear } from '../lib/nn/linear.js';
import { LayerNorm, RmsNorm } from '../lib/nn/norm.js';
import { ANY, Parameter, type ParameterSource } from '../lib/nn/parameter.js';
import { cuSeqlens, runLayers } from '../lib/nn/sequences.js';
import { liveTensors, ops, scope, Tensor } from '../lib/tensor/index.js';
import { expectDevices, testDevices } from './support/devices.js';
import { expectClose, expectNoLeaks, expectSameBits } from './support/fixtures.js';

expectDevices();

/** A source that fills what is declared with sines of different phase; tensors belong to the scope around. */
class SineSource implements ParameterSource {
  readonly math = 'f32';
  readonly activations = 'f32';
  readonly device: string;
  readonly declared: [name: string, shape: readonly number[]][] = [];

  constructor(device: string) {
    this.device = device;
  }

  matrix(name: string, shape: readonly number[]): Parameter {
    this.declared.push([name, shape]);
    const resolved = shape.map((size) => (size === ANY ? 5 : size));
    const parameter = new Parameter(name, resolved);
    const count = resolved.reduce((a, b) => a * b, 1);
    const phase = this.declared.length;
    parameter.assign(
      Tensor.fromArray(
        Float32Array.from({ length: count }, (_, i) => Math.sin(3 * i + phase)),
        resolved,
        { device: this.device },
      ),
    );
    return parameter;
  }

  vector(name: string, shape: readonly number[]): Parameter {
    return this.matrix(name, shape);
  }

  constant(name: string, _values: Float32Array, shape: readonly number[]): Parameter {
    return this.matrix(name, shape);
  }

  stackedMatrix(names: readonly string[], [rows, ...rest]: readonly number[]): Parameter {
    return this.matrix(names.join('+'), [names.length * rows!, ...rest]);
  }

  stackedVector(names: readonly string[], shape: readonly number[]): Parameter {
    return this.stackedMatrix(names, shape);
  }

  derived(name: string, shape: readonly number[]): Parameter {
    return this.matrix(name, shape);
  }

  ignore(): void {}
}

describe.each(testDevices)('modules on %s', (device) => {
  expectNoLeaks();

  it('declare the names and shapes of the checkpoint', () => {
    scope(() => {
      const source = new SineSource(device);
      new Linear(source, 'a', 3, 7);
      new Linear(source, 'b', 3, 7, false);
      new LayerNorm(source, 'c', 3, 1e-6);
      new RmsNorm(source, 'd', 3, 1e-6);
      expect(new Embedding(source, 'e', 3).rows).toBe(5);
      expect(source.declared).toEqual([
        ['a.weight', [7, 3]],
        ['a.bias', [7]],
        ['b.weight', [7, 3]],
        ['c.weight', [3]],
        ['c.bias', [3]],
        ['d.weight', [3]],
        ['e.weight', [ANY, 3]],
      ]);
    });
  });

  it('a linear layer adds its bias before the activation and the residual after it', () => {
    scope(() => {
      const layer = new Linear(new SineSource(device), 'fc', 3, 2);
      const x = Float32Array.of(0.5, -1, 2, 1, 1, 1);
      const residual = Float32Array.of(10, 20, 30, 40);
      const [w, b] = [layer.weight.tensor.toFloat32(), layer.bias!.tensor.toFloat32()];
      const expected = [0, 1].flatMap((row) =>
        [0, 1].map((out) => {
          const product = [0, 1, 2].reduce((sum, k) => sum + x[row * 3 + k]! * w[out * 3 + k]!, b[out]!);
          return Math.max(product, 0) + residual[row * 2 + out]!;
        }),
      );
      const y = layer.forward(Tensor.fromArray(x, [2, 3], { device }), {
        activation: 'relu',
        residual: Tensor.fromArray(residual, [2, 2], { device }),
      });
      // three products and two sums of values up to 40 in f32
      expectClose(y.toFloat32(), expected, { atol: 1e-5 });
    });
  });

  it('take an empty batch', () => {
    scope(() => {
      const source = new SineSource(device);
      const x = Tensor.zeros([0, 3], { device });
      expect(new Linear(source, 'a', 3, 7).forward(x).shape).toEqual([0, 7]);
      expect(new LayerNorm(source, 'b', 3, 1e-6).forward(x).shape).toEqual([0, 3]);
      const ids = Tensor.fromArray(new Int32Array(0), [0], { device });
      expect(new Embedding(source, 'c', 3).forward(ids).shape).toEqual([0, 3]);
    });
  });

  it('name what does not fit', () => {
    scope(() => {
      const layer = new Linear(new SineSource(device), 'fc', 3, 2);
      expect(() => layer.forward(Tensor.zeros([1, 4], { device }))).toThrow(expect.objectContaining({ code: 'SHAPE' }));
    });
  });
});

describe.each(testDevices)('packed sequences on %s', (device) => {
  expectNoLeaks();

  it('begin where the ones before them end, empty ones included', () => {
    scope(() => {
      expect([...cuSeqlens([3, 0, 257, 1], device).toArray()]).toEqual([0, 3, 3, 260, 261]);
      expect([...cuSeqlens([], device).toArray()]).toEqual([0]);
    });
  });
});

describe.each(testDevices)('a stack of layers on %s', (device) => {
  expectNoLeaks();

  it('holds its input and one layer’s tensors, however deep it is', () => {
    scope(() => {
      const x = Tensor.fromArray(Float32Array.of(1, 2, 3), [1, 3], { device });
      const layers = Array.from({ length: 20 }, (_, i) => i);
      const alive: number[] = [];
      const y = runLayers(x, layers, (layer, h) => {
        const doubled = ops.affine(h, 2);
        const result = ops.affine(doubled, 0.5, layer);
        alive.push(liveTensors());
        return result;
      });
      expect(new Set(alive.slice(1)).size).toBe(1);
      expectSameBits(y.toFloat32(), Float32Array.of(191, 192, 193));
      expect(x.disposed).toBe(false);
    });
  });

  it('of no layers is its input', () => {
    scope(() => {
      const x = Tensor.zeros([1, 3], { device });
      expect(runLayers(x, [], (_, h) => h)).toBe(x);
    });
  });
});
