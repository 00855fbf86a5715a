// Record and replay: the ops of a function run again in one call, on new inputs, without touching other memory.

import { describe, expect, it } from 'vitest';
import { Tensor, keep, ops, record, scope } from '../lib/tensor/index.js';
import { expectDevices, settled, testDevices } from './support/devices.js';
import { expectNoLeaks } from './support/fixtures.js';

expectDevices();

describe.each(testDevices)('a recorded graph on %s', (device) => {
  expectNoLeaks();

  const f32 = (values: number[], shape = [values.length]): Tensor => Tensor.fromArray(values, shape, { device });
  const i32 = (values: number[]): Tensor => Tensor.fromArray(values, [values.length], { dtype: 'i32', device });

  it('computes what the function computes, for new inputs at every replay', () => {
    const x = f32([1, 2, 3], [1, 3]);
    const w = f32([1, 0, 0, 0, 1, 0, 1, 1, 1], [3, 3]);
    const step = (): Tensor => scope(() => ops.add(ops.softmax(ops.linear(ops.affine(x, 2), w)), x));
    const graph = record(step);
    expect(graph.size).toBe(4);
    for (const values of [
      [1, 2, 3],
      [0.5, -1, 7],
      [0, 0, 0],
    ]) {
      x.write(values);
      graph.replay();
      using direct = step();
      expect(graph.outputs.toArray()).toEqual(direct.toArray());
    }
    graph.dispose();
    graph.dispose();
    x.dispose();
    w.dispose();
  });

  it('keeps the tensors it reads alive', () => {
    const x = f32([1, 2]);
    const graph = record(() => ops.affine(x, 10));
    x.dispose();
    using other = f32([7, 7]); // would take the freed memory
    graph.replay();
    expect([...graph.outputs.toArray()]).toEqual([10, 20]);
    expect([...other.toArray()]).toEqual([7, 7]);
    graph.dispose();
  });

  it('reuses memory inside but never shares it with tensors outside', () => {
    using x = f32([1, 2, 3, 4]);
    const graph = record(() =>
      scope(() => {
        let y = ops.affine(x, 1, 1);
        for (let i = 0; i < 50; i++) y = scope(() => ops.affine(y, 1, 1));
        return y;
      }),
    );
    using bystander = f32([9, 9, 9, 9]);
    graph.replay();
    expect([...graph.outputs.toArray()]).toEqual([52, 53, 54, 55]);
    expect([...bystander.toArray()]).toEqual([9, 9, 9, 9]);
    graph.dispose();
  });

  it('updates kept tensors in place', () => {
    const total = Tensor.zeros([2], { device });
    const ids = i32([0]);
    const table = total.reshape([2, 1]);
    const graph = record(() => scope(() => ops.scatterRows(table, ids, ops.affine(ops.gatherRows(table, ids), 1, 5))));
    graph.replay();
    graph.replay();
    expect([...total.toArray()]).toEqual([10, 0]);
    for (const tensor of [total, ids, table]) tensor.dispose();
    graph.dispose();
  });

  it('refuses host transfers, zeros and a second recording, and recovers', () => {
    using x = f32([1]);
    const refused = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
    expect(() => record(() => f32([1]))).toThrow(refused);
    expect(() => record(() => Tensor.zeros([1], { device }))).toThrow(refused);
    expect(() => record(() => x.toArray())).toThrow(refused);
    expect(() => record(() => x.write([2]))).toThrow(refused);
    expect(() => record(() => record(() => ops.affine(x, 1)))).toThrow(refused);
    expect([...x.toArray()]).toEqual([1]);
    using y = ops.affine(x, 2);
    expect([...y.toArray()]).toEqual([2]);
  });

  it('throws STALE_TENSOR when replayed after dispose', () => {
    using x = f32([1]);
    const graph = record(() => keep(ops.affine(x, 1)));
    graph.dispose();
    expect(() => graph.replay()).toThrow(expect.objectContaining({ code: 'STALE_TENSOR' }));
  });

  it('reports an op that fails at replay', () => {
    using ids = i32([0]);
    using table = f32([1, 2], [2, 1]);
    const graph = record(() => ops.embedding(ids, table));
    graph.replay();
    ids.write([7]);
    expect(() => settled(device, () => graph.replay())).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    graph.dispose();
  });
});
