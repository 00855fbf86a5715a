// Ops that do little arithmetic: their time is that of moving rows. Sizes are those of the models; the rows were just
// written by the op before, so they come from a cache and are compared with its bandwidth.

import { ops, scope, Tensor, keep } from '../../lib/tensor/index.js';
import { ints, product, randomTensor, randomValues, Rotation } from '../random.js';
import type { Case, Memory } from '../row.js';

export function memoryBoundCases(smoke: boolean): Case[] {
  const cases = [
    ...normCases(),
    ...elementwiseCases(),
    ropeCase(257),
    ropeCase(1),
    embeddingCase(512),
    ...imageCases(),
  ];
  return smoke ? cases.filter(({ name }) => !name.includes('4096')) : cases;
}

function rowCase(
  group: string,
  shape: readonly number[],
  passes: number,
  make: () => { inputs: Tensor[]; run: () => unknown },
  memory: Memory = 'l3',
): Case {
  return {
    group,
    name: shape.join('×'),
    bytes: 4 * passes * product(shape),
    memory,
    prepare() {
      const { inputs, run } = make();
      return { run: () => scope(() => void run()), dispose: () => inputs.forEach((tensor) => tensor.dispose()) };
    },
  };
}

function normCases(): Case[] {
  const layerNorm = (rows: number, columns: number) =>
    rowCase('layerNorm', [rows, columns], 2, () => {
      const inputs = [randomTensor([rows, columns]), randomTensor([columns]), randomTensor([columns])] as const;
      return { inputs: [...inputs], run: () => ops.layerNorm(...inputs, 1e-6) };
    });
  const rmsNorm = (rows: number, columns: number) =>
    rowCase('rmsNorm', [rows, columns], 2, () => {
      const inputs = [randomTensor([rows, columns]), randomTensor([columns])] as const;
      return { inputs: [...inputs], run: () => ops.rmsNorm(...inputs, 1e-6) };
    });
  return [layerNorm(257, 1408), layerNorm(32, 768), rmsNorm(512, 4096), rmsNorm(1, 4096)];
}

function elementwiseCases(): Case[] {
  const shape = [257, 1408];
  const softmax = [512, 512];
  return [
    rowCase('softmax', softmax, 2, () => {
      const x = randomTensor(softmax);
      return { inputs: [x], run: () => ops.softmax(x) };
    }),
    rowCase('add', shape, 3, () => {
      const [a, b] = [randomTensor(shape), randomTensor(shape)];
      return { inputs: [a, b], run: () => ops.add(a, b) };
    }),
    rowCase('gelu', shape, 2, () => {
      const x = randomTensor(shape);
      return { inputs: [x], run: () => ops.activation(x, 'gelu') };
    }),
    rowCase('silu', shape, 2, () => {
      const x = randomTensor(shape);
      return { inputs: [x], run: () => ops.activation(x, 'silu') };
    }),
  ];
}

function ropeCase(tokens: number): Case {
  const shape = [tokens, 32, 128];
  return rowCase('rope', shape, 2, () => {
    const x = randomTensor(shape);
    const positions = ints(Array.from({ length: tokens }, (_, i) => i));
    const invFreq = keep(
      Tensor.fromArray(
        Float32Array.from({ length: 64 }, (_, i) => 10000 ** (-i / 64)),
        [64],
      ),
    );
    return { inputs: [x, positions, invFreq], run: () => ops.rope(x, positions, invFreq) };
  });
}

function embeddingCase(tokens: number): Case {
  const [vocabulary, columns] = [32000, 2048];
  return {
    group: 'embedding',
    name: `${tokens} of ${vocabulary}×${columns} bf16`,
    bytes: tokens * columns * (2 + 4),
    memory: 'dram',
    prepare() {
      const table = randomTensor([vocabulary, columns], 'bf16');
      const batches = new Rotation(tokens * columns * 2, () =>
        ints(Array.from({ length: tokens }, () => Math.floor(Math.random() * vocabulary))),
      );
      return {
        run: () => scope(() => void ops.embedding(batches.next(), table)),
        dispose: () => [table, ...batches.copies].forEach((tensor) => tensor.dispose()),
      };
    },
  };
}

function imageCases(): Case[] {
  const [height, width] = [1000, 1500];
  return [
    {
      group: 'resizeBicubic',
      name: `${width}×${height} → 224×224`,
      bytes: height * width * 3,
      memory: 'dram',
      prepare() {
        const pixels = Uint8Array.from(randomValues(height * width * 3), (value) => 128 + 127 * value);
        const image = keep(Tensor.fromArray(pixels, [height, width, 3]));
        return { run: () => scope(() => void ops.resizeBicubic(image, 224, 224)), dispose: () => image.dispose() };
      },
    },
    {
      group: 'normalizeImage',
      name: '224×224×3',
      bytes: 224 * 224 * 3 * 5,
      memory: 'l2',
      prepare() {
        const image = keep(Tensor.fromArray(new Uint8Array(224 * 224 * 3).fill(77), [224, 224, 3]));
        const options = { rescale: 1 / 255, mean: [0.48, 0.46, 0.41], std: [0.27, 0.26, 0.28] } as const;
        return { run: () => scope(() => void ops.normalizeImage(image, options)), dispose: () => image.dispose() };
      },
    },
  ];
}
