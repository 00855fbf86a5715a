// Builds lib/ into dist/: every entry as ESM, CommonJS and types.
//
// All entries lie flat in dist/, shared code in chunks beside them, so that `import.meta.url` is a file of dist/ wherever
// code ends up. An entry whose source does not exist yet is left out.
import { existsSync } from 'node:fs';
import { defineConfig } from 'tsup';

const entries: Record<string, string> = {
  index: 'lib/index.ts',
  tensor: 'lib/tensor/index.ts',
  worker: 'lib/engine/worker.ts',
  cli: 'lib/cli/main.ts',
};
const present = Object.fromEntries(Object.entries(entries).filter(([, file]) => existsSync(file)));

export default defineConfig({
  entry: present,
  format: ['esm', 'cjs'],
  dts: { entry: Object.fromEntries(Object.entries(present).filter(([name]) => name === 'index' || name === 'tensor')) },
  target: 'node20',
  platform: 'node',
  splitting: true,
  shims: true,
  sourcemap: true,
  clean: true,
  outDir: 'dist',
});
