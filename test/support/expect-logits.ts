// Compares the log-probabilities of a result with logits of the reference.

import type { EngineResult } from '../../lib/engine/protocol.js';
import { expectClose, type Tolerance } from './fixtures.js';

/** The likeliest tokens of the first step against the reference's logits of all. A request asks for them by `logprobs`. */
export function expectFirstLogits(
  { logprobs }: EngineResult,
  logits: Float32Array,
  tolerance: Tolerance = { atol: 1e-3 },
  what = 'log-probabilities',
): void {
  const { top } = logprobs![0]!;
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest;
  expectClose(
    top!.map(({ logprob }) => logprob),
    top!.map(({ tokenId }) => logits[tokenId]! - total),
    tolerance,
    what,
  );
}

/** Options of a request whose result `expectFirstLogits` reads. */
export const FIRST_LOGITS = { maxNewTokens: 1, logprobs: 20 };
