// Builds lib/ into dist/: the library as ESM, CommonJS and types.
//
// All entries lie flat in dist/, shared code in chunks beside them, so that `import.meta.url` is a file of dist/ wherever
// code ends up. The command is CommonJS alone: Node starts that several milliseconds sooner than an ES module.
import { readFileSync } from 'node:fs';
import { defineConfig } from 'tsup';

const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };
const api = { index: 'lib/index.ts', tensor: 'lib/tensor/index.ts' };
const library = { ...api, worker: 'lib/engine/worker.ts' };

export default defineConfig({
  entry: { ...library, cli: 'lib/cli/main.ts' },
  format: ['esm', 'cjs'],
  dts: { entry: api },
  define: { PACKAGE_VERSION: JSON.stringify(version) },
  esbuildOptions(options, { format }) {
    if (format === 'esm') options.entryPoints = library;
  },
  target: 'node20',
  platform: 'node',
  splitting: true,
  shims: true,
  sourcemap: true,
  clean: true,
  outDir: 'dist',
});
