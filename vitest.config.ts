// Each test file runs in a process of its own: native state (thread pool, live tensors) never leaks between files.
// Where a test runs on the emulated GPU as well, it may take most of a minute on a busy machine.
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
