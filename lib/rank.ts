// Candidates by their likelihood as an answer: what Model.rank returns.

import type { EngineResult } from './engine/protocol.js';

/** A candidate and how likely it is. */
export interface RankedCandidate {
  candidate: string;
  /** Its place among the candidates that were given. */
  index: number;
  /** Sum of the log-probabilities of its tokens: of the whole candidate, over T5 with the end token. */
  sum: number;
  /** `sum` divided by the number of tokens. */
  mean: number;
  /** Number of tokens, over T5 with the end token. */
  tokens: number;
}

/** Most likely first, equal ones in the order given. `by` says which number counts. */
export function rankCandidates(
  candidates: readonly string[],
  { candidates: scored = [] }: EngineResult,
  by: 'sum' | 'mean',
): RankedCandidate[] {
  const ranked = scored.map(({ logprobs }, index): RankedCandidate => {
    const sum = logprobs.reduce((total, value) => total + value, 0);
    return { candidate: candidates[index]!, index, sum, mean: sum / logprobs.length, tokens: logprobs.length };
  });
  return ranked.sort((a, b) => b[by] - a[by] || a.index - b.index);
}
