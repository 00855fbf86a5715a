// Each test file runs in a process of its own: native state (thread pool, live tensors) never leaks between files.
// Where a test runs on the emulated GPU as well, it may take minutes on a busy machine.
import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    // Most of the time goes to the emulated GPU, which has one thread.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
