// A request's answer may not depend on who shares its batch: the same requests alone, one after the other, and all at once.

import type { GenerationResult, Model } from '../../lib/index.js';
import { startRequest } from './requests.js';

/** Requests whose text, ids or log-probabilities differ between the two ways; empty is right. */
export async function compareConcurrent(alone: Model, together: Model, count: number): Promise<string[]> {
  const indices = Array.from({ length: count }, (_, i) => i);
  const expected: GenerationResult[] = [];
  for (const i of indices) expected.push(await startRequest(alone, i));
  const found = await Promise.all(indices.map((i) => startRequest(together, i)));
  return indices.flatMap((i) =>
    essence(found[i]!) === essence(expected[i]!) ? [] : [difference(i, expected[i]!, found[i]!)],
  );
}

function essence({ text, tokenIds, finishReason, logprobs }: GenerationResult): string {
  return JSON.stringify({ text, tokenIds, finishReason, logprobs });
}

function difference(i: number, alone: GenerationResult, together: GenerationResult): string {
  return `request ${i}: alone '${alone.text}' [${alone.tokenIds}], together '${together.text}' [${together.tokenIds}]`;
}
