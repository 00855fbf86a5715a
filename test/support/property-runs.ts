// How long property tests run: a fixed number of cases in the suite, or with QFORMER_FUZZ_SECONDS=600 as many as fit into that
// time per property, with another seed each time (`npx vitest run --testTimeout 0 FILE`).

import type { Parameters } from 'fast-check';

/** Settings of a property that runs `numRuns` cases in the ordinary suite. */
export function propertyRuns(numRuns: number): Parameters<unknown> {
  const seconds = Number(process.env['QFORMER_FUZZ_SECONDS'] ?? 0);
  return seconds > 0 ? { numRuns: 1e9, interruptAfterTimeLimit: seconds * 1000 } : { numRuns };
}
