// Every op refuses arguments that do not fit, with the op, the argument, what was needed and what came; nothing is leaked.

import { describe, expect, it } from 'vitest';
import { Tensor, ops, scope } from '../lib/tensor/index.js';
import { expectNoLeaks } from './support/fixtures.js';

const f = (...shape: number[]): Tensor => Tensor.zeros(shape);
const i = (...shape: number[]): Tensor => Tensor.zeros(shape, { dtype: 'i32' });
const ids = (values: number[]): Tensor => Tensor.fromArray(values, [values.length], { dtype: 'i32' });
const packed = (tokens: number): Tensor => ids([0, tokens]);

const cases: [string, string, RegExp, () => unknown][] = [
  ['linear', 'SHAPE', /linear: x \[2, 3\] does not fit w \[4, 5\]/, () => ops.linear(f(2, 3), f(4, 5))],
  ['linear', 'SHAPE', /linear: bias must be \[4\], got \[5\]/, () => ops.linear(f(2, 3), f(4, 3), { bias: f(5) })],
  ['linear', 'SHAPE', /residual must be \[2, 4\]/, () => ops.linear(f(2, 3), f(4, 3), { residual: f(2, 3) })],
  ['linear', 'DTYPE', /x must be f32, got i32/, () => ops.linear(i(2, 3), f(4, 3))],
  ['linear', 'DTYPE', /w must be f32 or f16 or bf16, got i32/, () => ops.linear(f(2, 3), i(4, 3))],
  ['linear', 'SHAPE', /at least one axis/, () => ops.linear(f(), f(4, 3))],
  [
    'linear',
    'INVALID_ARGUMENT',
    /activation must be one of/,
    () => ops.linear(f(2, 3), f(4, 3), { activation: 'tanh' as never }),
  ],
  ['linear', 'INVALID_ARGUMENT', /x must be a Tensor, got null/, () => ops.linear(null as never, f(4, 3))],
  ['linear', 'SHAPE', /not evenly spaced/, () => ops.linear(f(3, 2).transpose(0, 1), f(4, 3))],
  ['gatedLinear', 'SHAPE', /wUp must be \[4, 3\], got \[5, 3\]/, () => ops.gatedLinear(f(2, 3), f(4, 3), f(5, 3))],
  ['gatedLinear', 'DTYPE', /wUp must be f32, got f16/, () => ops.gatedLinear(f(2, 3), f(4, 3), f(4, 3).cast('f16'))],
  ['loraMerge', 'SHAPE', /b must be \[4, 2\]/, () => ops.loraMerge(f(4, 3), f(2, 3), f(2, 4), 1)],
  ['layerNorm', 'SHAPE', /layerNorm: weight must be \[3\], got \[4\]/, () => ops.layerNorm(f(2, 3), f(4), f(3), 1e-6)],
  ['rmsNorm', 'SHAPE', /rmsNorm: weight must be \[3\], got \[1, 3\]/, () => ops.rmsNorm(f(2, 3), f(1, 3), 1e-6)],
  ['softmax', 'DTYPE', /softmax: x must be f32/, () => ops.softmax(i(2, 3))],
  ['rope', 'SHAPE', /head_dim must be even/, () => ops.rope(f(2, 1, 3), i(2), f(1))],
  ['rope', 'SHAPE', /positions must be \[2\], got \[3\]/, () => ops.rope(f(2, 1, 4), i(3), f(2))],
  ['rope', 'DTYPE', /positions must be i32/, () => ops.rope(f(2, 1, 4), f(2), f(2))],
  [
    'attention',
    'SHAPE',
    /v must be \[5, 2, 8\]/,
    () => ops.attention(f(3, 4, 8), f(5, 2, 8), f(5, 2, 4), { cuSeqlensQ: packed(3), cuSeqlensK: packed(5), scale: 1 }),
  ],
  [
    'attention',
    'SHAPE',
    /4 heads cannot share 3 kv heads/,
    () => ops.attention(f(3, 4, 8), f(5, 3, 8), f(5, 3, 8), { cuSeqlensQ: packed(3), cuSeqlensK: packed(5), scale: 1 }),
  ],
  [
    'attention',
    'INVALID_ARGUMENT',
    /./,
    () => ops.attention(f(3, 1, 8), f(5, 1, 8), f(5, 1, 8), { cuSeqlensQ: packed(9), cuSeqlensK: packed(5), scale: 1 }),
  ],
  [
    'attention',
    'INVALID_ARGUMENT',
    /./,
    () =>
      ops.attention(f(3, 1, 8), f(5, 1, 8), f(5, 1, 8), {
        cuSeqlensQ: ids([0, -1, 3]),
        cuSeqlensK: ids([0, 1, 5]),
        scale: 1,
      }),
  ],
  [
    'attention',
    'INVALID_ARGUMENT',
    /mask must be one of/,
    () =>
      ops.attention(f(3, 1, 8), f(3, 1, 8), f(3, 1, 8), {
        cuSeqlensQ: packed(3),
        cuSeqlensK: packed(3),
        scale: 1,
        mask: 'mlm' as never,
      }),
  ],
  [
    'kvAppend',
    'INVALID_ARGUMENT',
    /./,
    () => ops.kvAppend(f(1, 1, 8), f(1, 1, 8), f(2, 4, 1, 8), f(2, 4, 1, 8), ids([8])),
  ],
  [
    'kvAppend',
    'SHAPE',
    /k must be \[1, 2, 8\], got \[1, 1, 8\]/,
    () => ops.kvAppend(f(1, 1, 8), f(1, 1, 8), f(2, 4, 2, 8), f(2, 4, 2, 8), ids([0])),
  ],
  [
    'pagedAttention',
    'INVALID_ARGUMENT',
    /./,
    () =>
      ops.pagedAttention(f(1, 1, 8), f(2, 4, 1, 8), f(2, 4, 1, 8), {
        cuSeqlensQ: packed(1),
        blockTable: Tensor.fromArray([5], [1, 1], { dtype: 'i32' }),
        contextLens: ids([1]),
        scale: 1,
      }),
  ],
  [
    'pagedAttention',
    'INVALID_ARGUMENT',
    /./,
    () =>
      ops.pagedAttention(f(1, 1, 8), f(2, 4, 1, 8), f(2, 4, 1, 8), {
        cuSeqlensQ: packed(1),
        blockTable: Tensor.fromArray([0], [1, 1], { dtype: 'i32' }),
        contextLens: ids([5]),
        scale: 1,
      }),
  ],
  ['embedding', 'INVALID_ARGUMENT', /7/, () => ops.embedding(ids([0, 7]), f(7, 2))],
  ['embedding', 'INVALID_ARGUMENT', /-1/, () => ops.embedding(ids([-1]), f(7, 2))],
  ['scatterRows', 'INVALID_ARGUMENT', /3/, () => ops.scatterRows(f(3, 2), ids([3]), f(1, 2))],
  ['scatterRows', 'SHAPE', /src must be \[1, 2\]/, () => ops.scatterRows(f(3, 2), ids([0]), f(2, 2))],
  ['add', 'SHAPE', /add: b must be \[2, 3\], got \[3, 2\]/, () => ops.add(f(2, 3), f(3, 2))],
  [
    'normalizeImage',
    'INVALID_ARGUMENT',
    /std must be positive/,
    () => ops.normalizeImage(Tensor.zeros([1, 1, 3], { dtype: 'u8' }), { rescale: 1, mean: [0, 0, 0], std: [1, 0, 1] }),
  ],
  [
    'patchEmbedding',
    'SHAPE',
    /not a multiple of the patch size/,
    () => ops.patchEmbedding(f(1, 3, 5, 4), f(8, 3, 2, 2), { classEmbedding: f(8), positions: f(5, 8) }),
  ],
  [
    'patchEmbedding',
    'SHAPE',
    /positions must be \[5, 8\]/,
    () => ops.patchEmbedding(f(1, 3, 4, 4), f(8, 3, 2, 2), { classEmbedding: f(8), positions: f(4, 8) }),
  ],
];

describe('an op', () => {
  expectNoLeaks();

  it.each(cases)('%s throws %s matching %s', (_, code, message, run) => {
    scope(() => {
      expect(run).toThrow(
        expect.objectContaining({ name: 'QFormerError', code, message: expect.stringMatching(message) }),
      );
    });
  });

  it('works on empty batches', () =>
    scope(() => {
      expect(ops.linear(f(0, 3), f(4, 3), { bias: f(4) }).shape).toEqual([0, 4]);
      expect(ops.layerNorm(f(0, 3), f(3), f(3), 1e-6).shape).toEqual([0, 3]);
      expect(ops.embedding(i(0), f(4, 3)).shape).toEqual([0, 3]);
      const none = { cuSeqlensQ: i(1), cuSeqlensK: i(1), scale: 1 };
      expect(ops.attention(f(0, 2, 8), f(0, 2, 8), f(0, 2, 8), none).shape).toEqual([0, 2, 8]);
      expect(ops.softmax(f(3, 0)).shape).toEqual([3, 0]);
    }));
});
