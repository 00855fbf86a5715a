// What the scheduler admits, preempts and resumes as a whole: the sequences of one request. A plain request is a single
// Sequence; a beam search forks its first one into several that share blocks.

import type { EncoderInput } from './encoder-input.js';
import type { BlockManager } from './kv-cache.js';
import type { Delta, EngineResult, FinishReason, TokenLogprob } from '../protocol.js';
import type { Sequence } from './sequence.js';

/** The best next tokens of a sequence, descending, with their log-probabilities after penalties and bans. */
export interface Candidates {
  ids: number[];
  logprobs: number[];
}

/** What a step produced for one scheduled sequence. */
export type StepOutput =
  | { tokenId: number; logprob?: TokenLogprob }
  | { candidates: Candidates }
  /** Log-probabilities that were asked for, row by row, from row number `row` of those on. */
  | { logprobs: number[][]; row: number }
  | { error: unknown };

/** Log-probabilities wanted of a sequence, instead of a next token: `ids[i]` at position `from + i`. */
export interface Probe {
  from: number;
  ids: readonly (readonly number[])[];
}

/** What a group needs to know when it takes the outputs of a step. */
export interface GroupStep {
  blocks: BlockManager;
  /** Bounds prompt and answer together. */
  maxTokens: number;
  /** Clock reading, ms. */
  now: number;
}

/** The sequences of one request. */
export interface SequenceGroup {
  readonly id: number;
  readonly promptLength: number;
  /** Tokens beyond the prompt that there must be room for. */
  readonly answerTokens: number;
  /** Tokens of the prompt as the model reads it: what an encoder reads, or the prompt itself. */
  readonly inputLength: number;
  /** What its sequences read through the encoder, in an encoder–decoder model. */
  readonly encoder: EncoderInput | undefined;
  /** Tokens at a time: how many sequences it has at most. */
  readonly width: number;
  /** Those that run, all beginning with the prompt; at least one. After a preemption the first computes what all begin with. */
  readonly sequences: readonly Sequence[];
  preemptions: number;

  /** Notes the first step that runs it, and the prompt tokens that the prefix cache had. */
  markStarted(now: number, cachedTokens: number): void;
  /** Takes what its sequences produced in one step. Answers what to show, and how it ended if it did. */
  accept(
    outputs: ReadonlyMap<Sequence, StepOutput>,
    step: GroupStep,
  ): { delta?: Delta; finished?: FinishReason | undefined };
  /** What was held back so far, for a request that ends early. */
  flush(): Delta | undefined;
  /** What the request gets in the end. */
  result(finishReason: FinishReason, now: number): EngineResult;
}
