// Checks the C++ sources against .clang-format, or rewrites them with --fix.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const sources = ['csrc', 'cuda']
  .filter((folder) => existsSync(join(root, folder)))
  .flatMap((folder) => readdirSync(join(root, folder), { recursive: true }).map((file) => join(folder, file)))
  .filter((file) => /\.(h|cpp|cu|cuh)$/.test(file));

const command = createRequire(import.meta.url).resolve('clang-format');
const mode = process.argv.includes('--fix') ? ['-i'] : ['--dry-run', '-Werror'];
const { status } = spawnSync(process.execPath, [command, ...mode, '--style=file', ...sources], {
  cwd: root,
  stdio: 'inherit',
});
process.exit(status ?? 1);
