// The import rule of the layers (scripts/eslint-layers.mjs): each wrong import is reported, each right one is not.
import { ESLint } from 'eslint';
import { fileURLToPath } from 'node:url';
import { dirname, join } from 'node:path';
import tseslint from 'typescript-eslint';
import { describe, expect, it } from 'vitest';
import layers from '../scripts/eslint-layers.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const eslint = new ESLint({
  cwd: root,
  overrideConfigFile: true,
  overrideConfig: [
    {
      files: ['**/*.ts'],
      languageOptions: { parser: tseslint.parser as never },
      plugins: { qformer: layers as never },
      rules: { 'qformer/layers': 'error' },
    },
  ],
});

async function complaints(file: string, code: string): Promise<string[]> {
  const [result] = await eslint.lintText(code, { filePath: join(root, 'lib', file) });
  return result!.messages.map((message) => message.message);
}

describe('the import rule of the layers', () => {
  it.each([
    ['tensor/ops.ts', "import { Linear } from '../nn/linear.js';", "'tensor' must not import layer 'nn'"],
    ['nn/linear.ts', "import { createModel } from '../models/registry.js';", "'nn' must not import layer 'models'"],
    [
      'models/vit.ts',
      "import { Engine } from '../engine/scheduling/engine.js';",
      "'models' must not import layer 'scheduling'",
    ],
    ['io/image.ts', "import { Tensor } from '../tensor/index.js';", "'io' must not import layer 'tensor'"],
    ['io/image.ts', "import type { Tensor } from '../tensor/index.js';", "types of layer 'tensor'"],
    ['io/image.ts', "import { packageRoot } from '../package-root.js';", "'io' must not import layer 'package-root'"],
    [
      'engine/scheduling/scheduler.ts',
      "import { Tensor } from '../../tensor/index.js';",
      "'scheduling' must not import layer 'tensor'",
    ],
    [
      'engine/scheduling/engine.ts',
      "import { ModelRunner } from '../execution/runner.js';",
      "'scheduling' must not import layer 'execution'",
    ],
    ['engine/client.ts', "import './worker.js';", "'client' must not import layer 'worker'"],
    ['model.ts', "import { ops } from './tensor/index.js';", "'main' must not import layer 'tensor'"],
    ['index.ts', "export { Tensor } from './tensor/index.js';", "'main' must not import layer 'tensor'"],
    ['index.ts', "export * from './tensor/index.js';", "'main' must not import layer 'tensor'"],
    ['cli/demo.ts', "const t = await import('../tensor/index.js');", "'cli' must not import layer 'tensor'"],
    ['cli/demo.ts', "const t = require('../tensor/index.js');", "'cli' must not import layer 'tensor'"],
    ['tensor/tensor.ts', "import load from 'node-gyp-build';", 'only lib/tensor/binding.ts'],
    ['cli/demo.ts', "import { x } from '../../bench/run.js';", 'outside lib/'],
    ['engine/runner.ts', "import { ops } from '../tensor/index.js';", 'lib/engine/runner belongs to no layer'],
  ])('reports in %s: %s', async (file, code, expected) => {
    const found = await complaints(file, code);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(expected);
  });

  it.each([
    ['tensor/binding.ts', "import load from 'node-gyp-build'; import { QFormerError } from '../errors.js';"],
    ['models/vit.ts', "import { ops } from '../tensor/index.js'; import { Linear } from '../nn/linear.js';"],
    [
      'engine/execution/runner.ts',
      "import { ops } from '../../tensor/index.js'; import { Sequence } from '../scheduling/sequence.js';",
    ],
    ['engine/scheduling/engine.ts', "import type { Runner } from '../execution/runner.js';"],
    ['index.ts', "import type { Tensor } from './tensor/index.js'; export { loadModel } from './model.js';"],
    ['cli/main.ts', "import { Command } from 'commander'; import { loadModel } from '../model.js';"],
  ])('accepts in %s: %s', async (file, code) => {
    expect(await complaints(file, code)).toEqual([]);
  });

  it('covers every file of lib/ in the repository configuration', async () => {
    const config = (await new ESLint({ cwd: root }).calculateConfigForFile(join(root, 'lib/io/image.ts'))) as {
      rules: Record<string, unknown[]>;
    };
    expect(config.rules['qformer/layers']?.[0]).toBe(2);
  });
});
