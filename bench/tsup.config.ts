// Builds the harness into build-bench/, which git ignores: Node 20 cannot run TypeScript.
import { defineConfig } from 'tsup';

export default defineConfig({
  entry: {
    main: 'bench/main.ts',
    soak: 'bench/soak/main.ts',
    retrieval: 'bench/retrieval/main.ts',
    eval: 'bench/eval/main.ts',
    quantized: 'bench/eval/quantized.ts',
    large: 'bench/large/main.ts',
    'peers-ours': 'bench/peers/ours.ts',
    'peers-sharp': 'bench/peers/sharp.ts',
    'peers-llama-cpp': 'bench/peers/llama-cpp.ts',
    'peers-onnxruntime': 'bench/peers/onnxruntime.ts',
  },
  format: ['esm'],
  target: 'node20',
  platform: 'node',
  outDir: 'build-bench',
  sourcemap: true,
  silent: true,
});
