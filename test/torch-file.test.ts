// PyTorch's .bin files: the same bytes as their safetensors twins, one test per way in which a file can lie, and pickles that
// would run something in Python. Nothing here may be executed, hang, or describe bytes outside the file.

import { Buffer } from 'node:buffer';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, describe, expect, test } from 'vitest';

import { openCheckpoint } from '../lib/io/checkpoint.js';
import { readSafetensorsHeader, type TensorEntry } from '../lib/io/safetensors.js';
import { weightBytes } from '../lib/io/memory-estimate.js';
import { readTorchFile } from '../lib/io/torch-file.js';
import type { Llama } from '../lib/models/llama.js';
import { expectDevices, testDevices } from './support/devices.js';
import { expectError } from './support/expect-error.js';
import { expectSameBits, fixturePath } from './support/fixtures.js';
import { greedy, idTensor, loadForTest, storedValues } from './support/models.js';
import { dictPickle, op, tensorPickle, torchFile, zip, type BuiltTorchTensor } from './support/torch-file-builder.js';

expectDevices();

const folder = mkdtempSync(join(tmpdir(), 'qformer-torch-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const fixture = (name: string) => fixturePath('torch-files', name);

function read(bytes: Uint8Array): Map<string, TensorEntry> {
  const file = join(folder, 'x.bin');
  writeFileSync(file, bytes);
  return readTorchFile(file);
}

const bytesOf = ({ file, offset, bytes }: TensorEntry) => readFileSync(file).subarray(offset, offset + bytes);

function expectTwins(torch: ReadonlyMap<string, TensorEntry>, safe: ReadonlyMap<string, TensorEntry>): void {
  expect([...torch.keys()].sort()).toEqual([...safe.keys()].sort());
  for (const [name, entry] of safe) {
    const twin = torch.get(name)!;
    expect({ name, dtype: twin.dtype, shape: twin.shape }).toEqual({ name, dtype: entry.dtype, shape: entry.shape });
    expect(bytesOf(twin).equals(bytesOf(entry)), name).toBe(true);
  }
}

describe('a file that PyTorch wrote', () => {
  test.each(['dtypes', 'shared'])('%s.bin holds the tensors of its safetensors twin, byte for byte', (name) => {
    const torch = readTorchFile(fixture(`${name}.bin`));
    expect(torch.size).toBeGreaterThan(6);
    expectTwins(torch, readSafetensorsHeader(fixture(`${name}.safetensors`)));
  });

  test('may give one storage several names, and views into it', () => {
    const { offset } = readTorchFile(fixture('shared.bin')).get('0.weight')!;
    expect(readTorchFile(fixture('shared.bin')).get('tied')!.offset).toBe(offset);
  });

  test('holds storages at places that can be used without a copy', () => {
    for (const { offset } of readTorchFile(fixture('dtypes.bin')).values()) expect(offset % 8).toBe(0);
  });

  test('in shards makes the checkpoint that its safetensors twin makes, with the same weights', async () => {
    const twin = fixturePath('ziya-visual-tiny', 'llm');
    const dir = join(folder, 'llama');
    cpSync(fixture('llama'), dir, { recursive: true });
    cpSync(join(twin, 'config.json'), join(dir, 'config.json'));
    const checkpoint = openCheckpoint(dir);
    expect(checkpoint.files.map((file) => file.slice(-9))).toEqual(['00002.bin', '00002.bin']);
    expectTwins(checkpoint.tensors, openCheckpoint(twin).tensors);
    const [a, b] = [await loadForTest(dir), await loadForTest(twin)];
    const headOf = (model: typeof a) => (model.languageModel as Llama).lmHead.tensor.toFloat32();
    expectSameBits(headOf(a), headOf(b));
    for (const model of [a, b]) model.dispose();
  });

  test('is not looked at where the folder has safetensors', () => {
    const twin = fixturePath('ziya-visual-tiny', 'llm');
    const dir = join(folder, 'both');
    cpSync(twin, dir, { recursive: true });
    writeFileSync(join(dir, 'pytorch_model.bin'), 'damaged');
    expect(openCheckpoint(dir).files).toEqual([join(dir, 'model.safetensors')]);
  });

  test('with transposed and otherwise permuted tensors holds what its twin holds in order', () => {
    const [torch, twins] = [
      readTorchFile(fixture('permuted.bin')),
      readSafetensorsHeader(fixture('permuted.safetensors')),
    ];
    expect([...torch.keys()].sort()).toEqual([...twins.keys()].sort());
    expect([...torch.values()].map(({ name, order }) => [name, order])).toEqual([
      ['matrix', [1, 0]],
      ['conv', [0, 2, 3, 1]],
      ['rotated', [1, 2, 0]],
      ['half', [1, 0]],
      ['row', undefined],
      ['inside', [1, 0]],
    ]);
    for (const [name, twin] of twins) expectSameBits(storedValues(torch.get(name)!), storedValues(twin), name);
  });

  test.each(testDevices)(
    'with every matrix transposed, one level down, makes on %s the model that its twin makes',
    async (device) => {
      const twin = fixturePath('generated', 'opt-tiny');
      const dir = join(folder, `opt-${device}`);
      cpSync(fixture('opt'), dir, { recursive: true });
      cpSync(join(twin, 'config.json'), join(dir, 'config.json'));
      for (const options of [{}, { dtype: 'bf16' }, { quantize: 'int8' }] as const) {
        const logits: Float32Array[] = [];
        for (const from of [dir, twin]) {
          const model = await loadForTest(from, { device, ...options });
          const embed = () => model.languageModel.embed(idTensor([3, 1, 4, 1, 5], device));
          logits.push(greedy(model.languageModel, embed, 0).promptLogits);
          model.dispose();
        }
        expectSameBits(logits[0]!, logits[1]!, JSON.stringify(options));
      }
      // all but the vectors are copies
      const estimate = (from: string) => weightBytes(openCheckpoint(from).tensors, {});
      expect(estimate(twin).mapped).toBeGreaterThan(10_000);
      expect(estimate(dir)).toEqual({ mapped: 0, copied: estimate(twin).mapped + estimate(twin).copied });
    },
  );

  test.each([
    ['columns of a matrix', 'columns', /'columns': strides \[5,1\] of shape \[3,2\] leave gaps or overlap/],
    ['a repeated row', 'expanded', /'expanded': strides \[0,1\] of shape \[3,5\] leave gaps or overlap/],
  ])('with %s is refused, naming the tensor', (_, name, message) => {
    expectError(() => readTorchFile(fixture(`${name}.bin`)), 'UNSUPPORTED', message);
  });

  test('before version 1.6 is refused, saying what to do', () => {
    expectError(() => readTorchFile(fixture('legacy.bin')), 'UNSUPPORTED', 'save it again');
  });

  test.each([
    ['nested', { weight: [1, 1] }],
    ['state-dict', { a: [0, 1, 2, 3, 4, 5], b: [0, 2, 1, 3] }],
  ])('%s.bin holds its tensors one level down', (name, expected) => {
    const entries = [...readTorchFile(fixture(`${name}.bin`)).values()];
    expect(Object.fromEntries(entries.map((entry) => [entry.name, [...storedValues(entry)]]))).toEqual(expected);
  });

  test.each([
    ['two levels down', 'two-levels', "it holds 'model'"],
    ['in two places', 'two-dicts', 'which are meant'],
  ])('with its tensors %s is refused, saying what is there', (_, name, message) => {
    expectError(() => readTorchFile(fixture(`${name}.bin`)), 'FORMAT', message);
  });
});

describe('an honest archive', () => {
  const tensor = { elements: 6, shape: [2, 3] };
  const pickle = dictPickle({ a: tensorPickle(tensor) });

  test('may have zip64 sizes, a comment and other entries', () => {
    const more = { 'archive/byteorder': Buffer.from('little'), 'archive/version': Buffer.from('3\n') };
    for (const options of [{ zip64: true }, { comment: 'PK\x05\x06 in a comment' }, { more }]) {
      const entry = read(torchFile(pickle, { 0: 24 }, options)).get('a')!;
      expect(bytesOf(entry)).toEqual(Buffer.alloc(24, 7));
    }
  });

  test('may hold other things than tensors beside them', () => {
    const values = { a: tensorPickle(tensor), n: op.int(3), s: op.text('x'), none: op.none, d: op.emptyDict };
    expect([...read(torchFile(dictPickle(values), { 0: 24 })).keys()]).toEqual(['a']);
  });

  test('may name tensors like members of Object.prototype', () => {
    const names = ['__proto__', 'constructor'];
    const values = names.map((name) => [name, tensorPickle(tensor)] as const);
    const bytes = Buffer.concat([
      op.proto,
      op.emptyDict,
      op.mark,
      ...values.flatMap(([n, v]) => [op.text(n), v]),
      op.setItems,
      op.stop,
    ]);
    expect([...read(torchFile(bytes, { 0: 24 })).keys()]).toEqual(names);
  });
});

describe('a pickle that would run something', () => {
  const canary = join(folder, 'executed');
  const command = op.text(`touch ${canary}`);
  const call = (callee: Buffer, ...more: Buffer[]) =>
    Buffer.concat([callee, op.mark, command, op.tuple, op.reduce, ...more]);
  const evil: [string, Buffer, string][] = [
    ['os.system by REDUCE', call(op.global('os', 'system')), 'os.system'],
    [
      'posix.system by STACK_GLOBAL',
      call(Buffer.concat([op.text('posix'), op.text('system'), op.stackGlobal])),
      'posix.system',
    ],
    ['builtins.eval', call(op.global('builtins', 'eval')), 'builtins.eval'],
    ['subprocess.Popen by INST', Buffer.concat([op.mark, command, op.inst('subprocess', 'Popen')]), 'subprocess.Popen'],
    ['a name that is never called', op.global('os', 'system'), 'os.system'],
    ['torch.load', call(op.global('torch', 'load')), 'torch.load'],
    ['getattr of an allowed module', op.global('torch._utils', '__builtins__'), 'torch._utils.__builtins__'],
    ['a member of Object.prototype', op.global('constructor', 'constructor'), 'constructor.constructor'],
  ];

  test.each(evil)('with %s is refused and names it', (_, bytes, global) => {
    const { details } = expectError(() => read(torchFile(dictPickle({ a: bytes }), {})), 'FORMAT', `names '${global}'`);
    expect(details).toMatchObject({ global });
    expect(existsSync(canary)).toBe(false);
  });

  test.each<[string, Buffer]>([
    [
      'an allowed class with arguments',
      Buffer.concat([op.global('collections', 'OrderedDict'), op.mark, op.int(1), op.tuple, op.reduce]),
    ],
    ['a storage type as a function', Buffer.concat([op.global('torch', 'FloatStorage'), op.emptyTuple, op.reduce])],
    ['a text as a function', Buffer.concat([op.text('os.system'), op.emptyTuple, op.reduce])],
    ['a state for a tensor', Buffer.concat([tensorPickle({ elements: 1, shape: [1] }), op.emptyDict, op.build])],
    ['a state for a class', Buffer.concat([op.global('collections', 'OrderedDict'), op.emptyDict, op.build])],
    ['a persistent id of another kind', Buffer.concat([op.text('module'), op.persistentId])],
    ['the opcode NEWOBJ', Buffer.concat([op.global('collections', 'OrderedDict'), op.emptyTuple, Buffer.of(0x81)])],
    ['the opcode EXT1', Buffer.of(0x82, 1)],
    ['the opcode PERSID', Buffer.from('Pos\n')],
  ])('with %s is refused', (_, bytes) => {
    expectError(() => read(torchFile(dictPickle({ a: bytes }), { 0: 4 })), 'FORMAT', 'pickle, byte');
  });
});

describe('a pickle that is too much', () => {
  const pickled =
    (...parts: Buffer[]) =>
    () =>
      read(torchFile(Buffer.concat([op.proto, ...parts]), {}));

  test('as lists of lists of lists takes no more memory than its bytes, and holds no tensors', () => {
    // each level holds the one before ten times: 10^30 leaves if anybody walked them
    const levels = Array.from({ length: 30 }, (_, i) => [
      op.emptyList,
      op.mark,
      ...Array.from({ length: 10 }, () => op.get(i)),
      Buffer.from('e'),
      op.put(i + 1),
    ]);
    const laughs = [op.text('lol'), op.put(0), ...levels.flat(), op.stop];
    expectError(pickled(...laughs), 'FORMAT', 'values are left on the stack');
    const bytes = Buffer.concat([
      op.proto,
      op.emptyDict,
      op.put(200),
      op.text('x'),
      ...laughs.slice(0, -1),
      Buffer.from('s'),
      op.stop,
    ]);
    expectError(() => read(torchFile(bytes, {})), 'FORMAT', /byte/);
  });

  test.each<[string, Buffer[], RegExp]>([
    ['nested deeper than any file', [Buffer.alloc(1000, '(')], /nested more than/],
    ['with millions of values', [Buffer.alloc(2 ** 20 + 2, 'N')], /values on the stack/],
    ['with millions of opcodes', [Buffer.alloc(2 ** 22, 'N0')], /opcodes/],
    ['with a text longer than the file', [Buffer.from('X\xff\xff\x00\x00', 'latin1')], /truncated/],
    ['with a text of gigabytes', [Buffer.from('X\xff\xff\xff\xff', 'latin1')], /a string of 4294967295 bytes/],
    ['with an integer of many bytes', [Buffer.of(0x8a, 200), Buffer.alloc(200)], /an integer of 200 bytes/],
    ['with an integer beyond 2^53', [Buffer.of(0x8a, 8), Buffer.alloc(8, 0x7f)], /the integer/],
    ['with an endless name', [Buffer.from('c'), Buffer.alloc(5000, 'a')], /a name without an end/],
    ['without an end', [op.emptyDict], /truncated/],
    ['that is empty', [op.stop], /the stack is empty/],
    ['with an unknown protocol', [Buffer.of(0x80, 9)], /protocol 9/],
    ['that asks for what it never kept', [op.get(3)], /no value 3 in the memo/],
    ['that pops below a mark', [op.none, op.mark, Buffer.from('0')], /the stack is empty/],
    ['that closes no mark', [op.tuple], /no mark/],
    ['that sets items of a list', [op.emptyList, op.mark, op.int(1), op.int(2), op.setItems], /no dict/],
    ['that sets half an item', [op.emptyDict, op.mark, op.int(1), op.setItems], /no dict/],
    ['that appends to a dict', [op.emptyDict, op.int(1), op.append], /no list/],
    ['that sets a key twice', [op.emptyDict, op.mark, ...[1, 2, 1, 2].map(op.int), op.setItems], /set twice/],
  ])('%s is refused', (_, parts, message) => {
    expectError(pickled(...parts), 'FORMAT', message);
  });
});

describe('a tensor that lies', () => {
  const lie =
    (tensor: BuiltTorchTensor, storages: Record<string, number> = { 0: 24 }) =>
    () =>
      read(torchFile(dictPickle({ a: tensorPickle(tensor) }), storages));

  test.each<[string, BuiltTorchTensor, RegExp]>([
    ['about its storage’s size', { elements: 7, shape: [2] }, /24 bytes, but should have 7 elements of 4/],
    ['about its place', { elements: 6, offset: 5, shape: [2] }, /does not fit into a storage of 6/],
    ['about its shape', { elements: 6, shape: [7] }, /does not fit into a storage of 6/],
    ['about its rank', { elements: 6, shape: [2], stride: [3, 1] }, /1 dimensions and 2 strides/],
    ['with too many dimensions', { elements: 6, shape: Array<number>(9).fill(1) }, /9 dimensions/],
    ['with a negative size', { elements: 6, shape: [-2] }, /rebuilt from other things/],
    ['with a negative place', { elements: 6, offset: -1, shape: [2] }, /rebuilt from other things/],
    ['with a huge shape', { elements: 6, shape: [2 ** 30, 2 ** 30, 2 ** 30], stride: [1, 1, 1] }, /too large/],
    ['about the key of its storage', { key: '../../etc/passwd', elements: 6, shape: [6] }, /has no storage/],
  ])('%s is refused', (_, tensor, message) => {
    expectError(lie(tensor), 'FORMAT', message);
  });

  test('with overlapping rows is refused', () => {
    expectError(lie({ elements: 6, shape: [2, 3], stride: [0, 1] }), 'UNSUPPORTED', 'leave gaps or overlap');
  });
});

describe('an archive that lies', () => {
  const pickle = dictPickle({ a: tensorPickle({ elements: 6, shape: [6] }) });
  const file = torchFile(pickle, { 0: 24 });

  test('by being cut anywhere is refused', () => {
    for (let length = 0; length < file.length; length += length < 40 || length > file.length - 100 ? 1 : 13) {
      expectError(() => read(file.subarray(0, length)), 'FORMAT', /x\.bin/);
    }
  });

  test.each<[string, Buffer, 'FORMAT' | 'UNSUPPORTED', RegExp]>([
    ['with an entry beyond the file', torchFile(pickle, { 0: 24 }, { lastOffset: 1000 }), 'FORMAT', /outside the file/],
    [
      'with an entry that is longer than the file',
      torchFile(pickle, { 0: 24 }, { lastSize: 10_000 }),
      'FORMAT',
      /outside the file/,
    ],
    [
      'with an entry that begins elsewhere',
      torchFile(pickle, { 0: 24 }, { lastOffset: -1 }),
      'FORMAT',
      /no local header/,
    ],
    [
      'with zip64 places beyond the file',
      torchFile(pickle, { 0: 24 }, { zip64: true, lastOffset: 2 ** 40 }),
      'FORMAT',
      /outside the file/,
    ],
    ['with compressed entries', torchFile(pickle, { 0: 24 }, { method: 8 }), 'UNSUPPORTED', /compressed/],
    ['with encrypted entries', torchFile(pickle, { 0: 24 }, { flags: 1 }), 'UNSUPPORTED', /encrypted/],
    [
      'with big-endian numbers',
      torchFile(pickle, { 0: 24 }, { more: { 'archive/byteorder': Buffer.from('big') } }),
      'UNSUPPORTED',
      /byte order 'big'/,
    ],
    ['without a pickle', zip({ 'archive/data/0': Buffer.alloc(24) }), 'FORMAT', /0 entries named data.pkl/],
    ['with two pickles', zip({ 'a/data.pkl': pickle, 'b/data.pkl': pickle }), 'FORMAT', /2 entries named data.pkl/],
    ['that is no archive', Buffer.alloc(100, 'x'), 'FORMAT', /not a zip archive/],
  ])('%s is refused', (_, bytes, code, message) => {
    expectError(() => read(bytes), code, message);
  });

  test('with an entry under another entry’s header is refused', () => {
    const bytes = Buffer.from(file);
    bytes.write('archive/data/1', bytes.indexOf('archive/data/0'));
    expectError(() => read(bytes), 'FORMAT', 'names another one');
  });
});
