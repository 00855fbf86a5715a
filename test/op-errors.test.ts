// Every op refuses arguments that do not fit, with the op, the argument, what was needed and what came; nothing is leaked.

import { beforeAll, describe, expect, it } from 'vitest';
import { Tensor, ops, scope } from '../lib/tensor/index.js';
import { activationDtypes, expectDevices, settled, testDevices } from './support/devices.js';
import { expectNoLeaks } from './support/fixtures.js';

expectDevices();

// The device that the cases below run on: set by the suite of each device.
let device = 'cpu';
const f = (...shape: number[]): Tensor => Tensor.zeros(shape, { device });
const i = (...shape: number[]): Tensor => Tensor.zeros(shape, { dtype: 'i32', device });
const bf16 = (...shape: number[]): Tensor => Tensor.zeros(shape, { dtype: 'bf16', device });
const u8 = (...shape: number[]): Tensor => Tensor.zeros(shape, { dtype: 'u8', device });
const ids = (values: number[]): Tensor => Tensor.fromArray(values, [values.length], { dtype: 'i32', device });
const packed = (tokens: number): Tensor => ids([0, tokens]);
const norm = (k: number) => ({ weight: f(k), eps: 1e-6 });
// four heads, 3 queries, 5 keys
const biased = (table: Tensor, origin = 0): Tensor =>
  ops.attention(f(3, 4, 8), f(5, 4, 8), f(5, 4, 8), {
    cuSeqlensQ: packed(3),
    cuSeqlensK: packed(5),
    scale: 1,
    bias: { table, origin },
  });
const warp = (minTokensToKeep: number): Tensor =>
  ops.warpLogits(f(1, 9), { temperature: f(1), topK: i(1), topP: f(1), minP: f(1), minTokensToKeep });
const append = (x: Tensor, wq: Tensor, wk: Tensor, slots = 1, headDim = 4): Tensor =>
  ops.qkvAppend(
    x,
    { q: wq, k: wk, v: wk },
    {
      norm: norm(8),
      positions: i(1),
      invFreq: f(Math.floor(headDim / 2)),
      kCache: f(2, 4, 1, headDim),
      vCache: f(2, 4, 1, headDim),
      slotMapping: i(slots),
    },
  );
const cross = (x: Tensor, k: Tensor, numQuery: number): Tensor =>
  ops.qformerCrossAttention(x, k, k, {
    query: { weight: f(8, 8), bias: f(8) },
    output: { weight: f(8, 8), bias: f(8) },
    norm: { weight: f(8), bias: f(8), eps: 1e-12 },
    numQuery,
    scale: 1,
  });
const lora = (a: Tensor, b: Tensor, adapters: Tensor): void =>
  ops.loraApply(f(2, 4), f(2, 3), { a, b, scaling: f(2), adapters });

const cases: [string, string, RegExp, () => unknown][] = [
  ['linear', 'SHAPE', /linear: x \[2, 3\] does not fit w \[4, 5\]/, () => ops.linear(f(2, 3), f(4, 5))],
  ['linear', 'SHAPE', /linear: bias must be \[4\], got \[5\]/, () => ops.linear(f(2, 3), f(4, 3), { bias: f(5) })],
  ['linear', 'SHAPE', /residual must be \[2, 4\]/, () => ops.linear(f(2, 3), f(4, 3), { residual: f(2, 3) })],
  ['linear', 'DTYPE', /x must be f32( or f16)?( or bf16)?, got i32/, () => ops.linear(i(2, 3), f(4, 3))],
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
  [
    'linear',
    'SHAPE',
    /linear: normWeight must be \[3\], got \[4\]/,
    () => ops.linear(f(2, 3), f(4, 3), { norm: norm(4) }),
  ],
  [
    'linear',
    'DTYPE',
    /the result of f32 activations must be f32, got f16/,
    () => ops.linear(f(2, 3), f(4, 3), { dtype: 'f16' }),
  ],
  ['linear', 'DTYPE', /residual must be f32, got i32/, () => ops.linear(f(2, 3), f(4, 3), { residual: i(2, 4) })],
  [
    'gatedLinear',
    'SHAPE',
    /normWeight must be \[3\]/,
    () => ops.gatedLinear(f(2, 3), f(4, 3), f(4, 3), { norm: norm(2) }),
  ],
  ['qkvAppend', 'SHAPE', /qkvAppend: wq must be \[4, 8\], got \[6, 8\]/, () => append(f(1, 8), f(6, 8), f(4, 8))],
  ['qkvAppend', 'SHAPE', /wk must be \[4, 8\], got \[8, 8\]/, () => append(f(1, 8), f(8, 8), f(8, 8))],
  ['qkvAppend', 'DTYPE', /wk must be f32, got f16/, () => append(f(1, 8), f(8, 8), f(4, 8).cast('f16'))],
  ['qkvAppend', 'SHAPE', /slotMapping must be \[1\], got \[2\]/, () => append(f(1, 8), f(8, 8), f(4, 8), 2)],
  ['qkvAppend', 'SHAPE', /head_dim must be even, got 3/, () => append(f(1, 8), f(6, 8), f(3, 8), 1, 3)],
  ['qkvAppend', 'SHAPE', /normWeight must be \[6\], got \[8\]/, () => append(f(1, 6), f(8, 6), f(4, 6))],
  ['quantize', 'INVALID_ARGUMENT', /bits must be 8 or 4, got 3/, () => ops.quantize(f(2, 8), { bits: 3 as never })],
  [
    'quantize',
    'SHAPE',
    /even and divide the 8 columns of w, got 6/,
    () => ops.quantize(f(2, 8), { bits: 8, group: 6 }),
  ],
  ['quantize', 'DTYPE', /w must be f32 or f16 or bf16, got u8/, () => ops.quantize(u8(2, 8), { bits: 8, group: 8 })],
  [
    'quantLinear',
    'SHAPE',
    /x \[1, 8\] does not fit q \[2, 6\]/,
    () => ops.quantLinear(f(1, 8), { q: u8(2, 6), scales: bf16(2, 1) }),
  ],
  [
    'quantLinear',
    'SHAPE',
    /scales must be \[2, 1\], got \[3, 1\]/,
    () => ops.quantLinear(f(1, 8), { q: u8(2, 8), scales: bf16(3, 1) }),
  ],
  [
    'quantLinear',
    'SHAPE',
    /do not cut 8 columns into even groups/,
    () => ops.quantLinear(f(1, 8), { q: u8(2, 4), scales: bf16(2, 8) }),
  ],
  [
    'quantLinear',
    'INVALID_ARGUMENT',
    /math must be one of f32, int8, got 'bf16'/,
    () => ops.quantLinear(f(1, 8), { q: u8(2, 8), scales: bf16(2, 1) }, { math: 'bf16' as never }),
  ],
  ['quantLinear', 'DTYPE', /q must be u8, got f32/, () => ops.quantLinear(f(1, 8), { q: f(2, 8), scales: bf16(2, 1) })],
  [
    'quantLinear',
    'DTYPE',
    /scales must be bf16, got f32/,
    () => ops.quantLinear(f(1, 8), { q: u8(2, 8), scales: f(2, 1) }),
  ],
  [
    'qformerCrossAttention',
    'SHAPE',
    /k \[5, 2, 4\] does not fit x \[2, 3, 8\]/,
    () => cross(f(2, 3, 8), f(5, 2, 4), 3),
  ],
  ['qformerCrossAttention', 'SHAPE', /does not fit x/, () => cross(f(1, 3, 8), f(5, 3, 4), 3)],
  [
    'qformerCrossAttention',
    'INVALID_ARGUMENT',
    /numQuery must be between 0 and 3, got 4/,
    () => cross(f(1, 3, 8), f(5, 2, 4), 4),
  ],
  ['loraApply', 'SHAPE', /a must be \[2, 5, 3\], got \[2, 5, 4\]/, () => lora(f(2, 5, 4), f(2, 4, 5), i(2))],
  ['loraApply', 'SHAPE', /b must be \[2, 4, 5\], got \[2, 4, 6\]/, () => lora(f(2, 5, 3), f(2, 4, 6), i(2))],
  ['loraApply', 'SHAPE', /adapters must be \[2\], got \[3\]/, () => lora(f(2, 5, 3), f(2, 4, 5), i(3))],
  ['loraApply', 'INVALID_ARGUMENT', /./, () => lora(f(2, 5, 3), f(2, 4, 5), ids([0, 2]))],
  ['loraMerge', 'SHAPE', /b must be \[4, 2\]/, () => ops.loraMerge(f(4, 3), f(2, 3), f(2, 4), 1)],
  ['layerNorm', 'SHAPE', /layerNorm: weight must be \[3\], got \[4\]/, () => ops.layerNorm(f(2, 3), f(4), f(3), 1e-6)],
  ['rmsNorm', 'SHAPE', /rmsNorm: weight must be \[3\], got \[1, 3\]/, () => ops.rmsNorm(f(2, 3), f(1, 3), 1e-6)],
  ['softmax', 'DTYPE', /softmax: x must be f32/, () => ops.softmax(i(2, 3))],
  ['rope', 'SHAPE', /head_dim must be even/, () => ops.rope(f(2, 1, 3), i(2), f(1))],
  ['rope', 'SHAPE', /positions must be \[2\], got \[3\]/, () => ops.rope(f(2, 1, 4), i(3), f(2))],
  ['rope', 'DTYPE', /positions must be i32/, () => ops.rope(f(2, 1, 4), f(2), f(2))],
  ['attention', 'SHAPE', /attention: bias must be \[4, 9\], got \[2, 9\]/, () => biased(f(2, 9))],
  ['attention', 'SHAPE', /bias must be \[heads, span\]/, () => biased(f(4, 3, 5))],
  ['attention', 'DTYPE', /bias must be f32, got f16/, () => biased(f(4, 9).cast('f16'))],
  ['attention', 'INVALID_ARGUMENT', /the span of bias must be between 1 and/, () => biased(f(4, 0))],
  ['attention', 'INVALID_ARGUMENT', /biasOrigin must be between 0 and 8, got 9/, () => biased(f(4, 9), 9)],
  ['warpLogits', 'INVALID_ARGUMENT', /minTokensToKeep must be between 1 and/, () => warp(0)],
  [
    'attention',
    'INVALID_ARGUMENT',
    /attention: math must be one of/,
    () =>
      ops.attention(f(3, 4, 8), f(3, 4, 8), f(3, 4, 8), {
        cuSeqlensQ: packed(3),
        cuSeqlensK: packed(3),
        scale: 1,
        math: 'f16' as never,
      }),
  ],
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
        blockTable: Tensor.fromArray([5], [1, 1], { dtype: 'i32', device }),
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
        blockTable: Tensor.fromArray([0], [1, 1], { dtype: 'i32', device }),
        contextLens: ids([5]),
        scale: 1,
      }),
  ],
  ['embedding', 'INVALID_ARGUMENT', /id 7 .*outside|an id is outside/, () => ops.embedding(ids([0, 7]), f(7, 2))],
  ['embedding', 'INVALID_ARGUMENT', /id -1 .*outside|an id is outside/, () => ops.embedding(ids([-1]), f(7, 2))],
  [
    'scatterRows',
    'INVALID_ARGUMENT',
    /id 3 .*outside|an id is outside/,
    () => ops.scatterRows(f(3, 2), ids([3]), f(1, 2)),
  ],
  ['scatterRows', 'SHAPE', /src must be \[1, 2\]/, () => ops.scatterRows(f(3, 2), ids([0]), f(2, 2))],
  ['add', 'SHAPE', /add: b must be \[2, 3\], got \[3, 2\]/, () => ops.add(f(2, 3), f(3, 2))],
  [
    'normalizeImage',
    'INVALID_ARGUMENT',
    /std must be positive/,
    () => ops.normalizeImage(u8(1, 1, 3), { rescale: 1, mean: [0, 0, 0], std: [1, 0, 1] }),
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

describe.each(testDevices)('an op on %s', (name) => {
  beforeAll(() => void (device = name));
  expectNoLeaks();

  it.each(cases)('%s throws %s matching %s', (_, code, message, run) => {
    scope(() => {
      expect(() => settled(device, run)).toThrow(
        expect.objectContaining({ name: 'QFormerError', code, message: expect.stringMatching(message) }),
      );
    });
  });

  it('computes in the dtypes of the device only', () =>
    scope(() => {
      const known = activationDtypes(device);
      for (const dtype of ['f16', 'bf16'] as const) {
        const run = () => ops.rmsNorm(f(2, 4).cast(dtype), f(4), 1e-6);
        if (known.includes(dtype)) expect(settled(device, run).dtype).toBe(dtype);
        else
          expect(run).toThrow(
            expect.objectContaining({
              code: 'DTYPE',
              message: `rmsNorm: x must be ${known.join(' or ')}, got ${dtype}`,
            }),
          );
      }
    }));

  it('works on empty batches', () =>
    scope(() => {
      expect(ops.linear(f(0, 3), f(4, 3), { bias: f(4) }).shape).toEqual([0, 4]);
      expect(ops.layerNorm(f(0, 3), f(3), f(3), 1e-6).shape).toEqual([0, 3]);
      expect(ops.embedding(i(0), f(4, 3)).shape).toEqual([0, 3]);
      const none = { cuSeqlensQ: i(1), cuSeqlensK: i(1), scale: 1 };
      expect(ops.attention(f(0, 2, 8), f(0, 2, 8), f(0, 2, 8), none).shape).toEqual([0, 2, 8]);
      expect(ops.softmax(f(3, 0)).shape).toEqual([3, 0]);
      expect(cross(f(0, 3, 8), f(0, 2, 4), 3).shape).toEqual([0, 3, 8]);
      expect(ops.quantLinear(f(0, 8), { q: u8(2, 8), scales: bf16(2, 1) }).shape).toEqual([0, 2]);
    }));
});
