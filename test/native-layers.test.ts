// The include roots of the native layers (cmake/layers.cmake): an include of a layer that may not be known does not compile.
//
// Uses the compile commands of the addon's build, so it checks what the build really passes to the compiler.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const commands = JSON.parse(readFileSync(join(root, 'build', 'compile_commands.json'), 'utf8')) as {
  file: string;
  command: string;
}[];

/** Preprocesses one include with the compiler and the include roots of a layer; returns what the compiler says. */
function compile(layer: string, header: string): string {
  const entry = commands.find(({ file }) => file.startsWith(join(root, 'csrc', layer) + '/'));
  const [compiler = 'c++', ...words] = entry?.command.split(' ') ?? [];
  const roots = words.filter((word) => word.startsWith('-I'));
  expect(roots, `include roots of ${layer}`).not.toHaveLength(0);
  const args = [...roots, '-std=c++20', '-E', '-o', '/dev/null', '-x', 'c++', '-'];
  const { stderr } = spawnSync(compiler, args, { input: `#include "${header}"\n`, encoding: 'utf8' });
  return stderr;
}

it.each([
  ['cpu', 'core/tensor.h'],
  ['cpu', 'ops/ops.h'],
  ['cpu', 'napi/environment.h'],
  ['core', 'ops/ops.h'],
  ['core', 'io/mapped_file.h'],
  ['core', 'cpu/cpu_backend.h'],
  ['io', 'ops/ops.h'],
  ['ops', 'io/mapped_file.h'],
  ['ops', 'cpu/cpu_backend.h'],
])('a file of csrc/%s cannot include %s', (layer, header) => {
  expect(compile(layer, header)).toMatch(/fatal error.*(No such file|not found)/);
});

it.each([
  ['cpu', 'backend/backend.h'],
  ['core', 'backend/dtype.h'],
  ['io', 'core/tensor.h'],
  ['ops', 'core/tensor.h'],
])('a file of csrc/%s can include %s', (layer, header) => {
  expect(compile(layer, header)).toBe('');
});
