// The arithmetic of beam search, as transformers 5.18 does it: which candidates go on, which answers are finished, when
// no running beam can improve on them. No sequences and no blocks.
// A step keeps max(2, 1 + number of end ids) · num_beams candidates over all beams, so that num_beams of them go on whatever
// ends; of those that end only the ones among the first num_beams count. Sums are f32, as they are there.

import type { Candidates } from './group.js';
import type { FinishReason } from '../protocol.js';

/** A finished answer. */
export interface Hypothesis {
  tokenIds: number[];
  /** Sum of log-probabilities / length ** lengthPenalty. */
  score: number;
  reason: FinishReason;
}

/** A beam of the next step: `parent` is the number of the beam it goes on from. */
export interface Survivor {
  parent: number;
  tokenId: number;
}

export interface BeamOptions {
  numBeams: number;
  lengthPenalty: number;
  earlyStopping: boolean | 'never';
  /** Candidates that a step looks at. */
  numCandidates: number;
}

interface Candidate extends Survivor {
  sum: number;
}

/** Scores of the running beams and of the finished answers. */
export class BeamScores {
  /** At most numBeams, best first. */
  readonly finished: Hypothesis[] = [];
  /** Sums of log-probabilities of the running beams, best first. */
  #sums: number[] = [0];

  constructor(private readonly options: BeamOptions) {}

  /** The running beams as if they ended now, best first. */
  interrupted(answers: readonly (readonly number[])[]): Hypothesis[] {
    return answers.map((answer, i) => {
      return { tokenIds: [...answer], score: this.#score(this.#sums[i]!, Math.max(answer.length, 1)), reason: 'abort' };
    });
  }

  /**
   * One step: `candidates` and `answers` (generated tokens, `maxNewTokens` at most) of the running beams in order; `endOf` says
   * whether an answer is finished with its last token. Returns the beams that go on; none: the search is over.
   */
  advance(
    candidates: readonly Candidates[],
    answers: readonly (readonly number[])[],
    maxNewTokens: number,
    endOf: (answer: readonly number[]) => FinishReason | undefined,
  ): Survivor[] {
    const { numBeams } = this.options;
    const length = answers[0]!.length + 1;
    const running: Candidate[] = [];
    this.#best(candidates).forEach((candidate, rank) => {
      const answer = [...answers[candidate.parent]!, candidate.tokenId];
      const reason = endOf(answer);
      if (reason === undefined) running.push(candidate);
      else if (rank < numBeams) this.#finish({ tokenIds: answer, score: this.#score(candidate.sum, length), reason });
    });
    running.splice(numBeams);
    this.#sums = running.map(({ sum }) => sum);
    return this.#isOver(length, maxNewTokens) ? [] : running;
  }

  /** The candidates of all beams that a step looks at, best first; among equals the earlier beam, then the lower id. */
  #best(candidates: readonly Candidates[]): Candidate[] {
    const all = candidates.flatMap(({ ids, logprobs }, parent) =>
      ids.map((tokenId, i) => ({ parent, tokenId, sum: Math.fround(this.#sums[parent]! + logprobs[i]!) })),
    );
    all.sort((a, b) => b.sum - a.sum);
    return all.slice(0, this.options.numCandidates);
  }

  #finish(hypothesis: Hypothesis): void {
    const { finished } = this;
    const place = finished.findIndex(({ score }) => score < hypothesis.score);
    finished.splice(place < 0 ? finished.length : place, 0, hypothesis);
    finished.splice(this.options.numBeams);
  }

  #isOver(length: number, maxNewTokens: number): boolean {
    const { numBeams, earlyStopping, lengthPenalty } = this.options;
    if (this.#sums.length === 0) return true;
    if (this.finished.length < numBeams) return false;
    if (earlyStopping === true) return true;
    const hopeful = earlyStopping === 'never' && lengthPenalty > 0 ? maxNewTokens : length;
    return this.#score(this.#sums[0]!, hopeful) <= this.finished[numBeams - 1]!.score;
  }

  #score(sum: number, length: number): number {
    return sum / length ** this.options.lengthPenalty;
  }
}
