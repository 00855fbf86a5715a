// Metrics of captions against several references each: BLEU-4 (Papineni et al. 2002, over the whole corpus, closest reference
// length) and CIDEr-D (Vedantam et al. 2015), in the form in which published COCO and NoCaps figures are computed.

import { ngrams, words } from './words.js';

/** A caption and what people wrote about the same image. */
export interface CaptionCase {
  text: string;
  references: readonly string[];
}

const ORDERS = [1, 2, 3, 4];
/** Of CIDEr-D's penalty for another length, in bigrams. */
const SIGMA = 6;

/** Corpus BLEU-4, from 0 to 1; without smoothing, so 0 where no 4-gram matches. */
export function bleu4(cases: readonly CaptionCase[]): number {
  const matched = [0, 0, 0, 0];
  const total = [0, 0, 0, 0];
  let length = 0;
  let referenceLength = 0;
  for (const { text, references } of cases) {
    const tokens = words(text);
    const referenceTokens = references.map(words);
    length += tokens.length;
    referenceLength += closest(tokens.length, referenceTokens);
    ORDERS.forEach((n, order) => {
      const most = referenceTokens.map((reference) => ngrams(reference, n));
      for (const [gram, count] of ngrams(tokens, n)) {
        total[order]! += count;
        matched[order]! += Math.min(count, Math.max(...most.map((counts) => counts.get(gram) ?? 0)));
      }
    });
  }
  if (matched.includes(0)) return 0;
  const precision = ORDERS.reduce((sum, _, order) => sum + Math.log(matched[order]! / total[order]!) / 4, 0);
  return Math.exp(precision + Math.min(0, 1 - referenceLength / length));
}

function closest(length: number, references: readonly (readonly string[])[]): number {
  const lengths = references.map((reference) => reference.length).sort((a, b) => a - b);
  return lengths.reduce((best, next) => (Math.abs(next - length) < Math.abs(best - length) ? next : best));
}

/** CIDEr-D of the corpus, from 0 to 10; papers print it times 100, or as a percentage of 1. Document frequencies are those of the references given. */
export function ciderD(cases: readonly CaptionCase[]): number {
  const references = cases.map((one) => one.references.map((reference) => countsOf(reference)));
  const frequencies = documentFrequencies(references);
  const weigh = (counts: Map<string, number>[]): Weighted => weighted(counts, frequencies, Math.log(cases.length));
  const scores = cases.map(({ text }, i) => {
    const candidate = weigh(countsOf(text));
    const similarities = references[i]!.map((reference) => similarity(candidate, weigh(reference)));
    return (10 * similarities.reduce((sum, value) => sum + value, 0)) / similarities.length;
  });
  return scores.reduce((sum, value) => sum + value, 0) / scores.length;
}

/** tf · idf of each order's n-grams, their norms, and the number of bigrams. */
interface Weighted {
  grams: Map<string, number>[];
  norms: number[];
  bigrams: number;
}

function countsOf(text: string): Map<string, number>[] {
  const tokens = words(text);
  return ORDERS.map((n) => ngrams(tokens, n));
}

// In how many images' references an n-gram occurs.
function documentFrequencies(references: readonly (readonly Map<string, number>[][])[]): Map<string, number> {
  const frequencies = new Map<string, number>();
  for (const image of references) {
    for (const gram of new Set(image.flatMap((reference) => reference.flatMap((counts) => [...counts.keys()])))) {
      frequencies.set(gram, (frequencies.get(gram) ?? 0) + 1);
    }
  }
  return frequencies;
}

function weighted(
  counts: readonly Map<string, number>[],
  frequencies: Map<string, number>,
  logImages: number,
): Weighted {
  const grams = counts.map(
    (order) =>
      new Map([...order].map(([gram, count]) => [gram, count * (logImages - Math.log(frequencies.get(gram) ?? 1))])),
  );
  const norms = grams.map((order) => Math.hypot(...order.values()));
  return { grams, norms, bigrams: [...counts[1]!.values()].reduce((sum, count) => sum + count, 0) };
}

function similarity(candidate: Weighted, reference: Weighted): number {
  const penalty = Math.exp(-((candidate.bigrams - reference.bigrams) ** 2) / (2 * SIGMA ** 2));
  const cosines = ORDERS.map((_, order) => {
    const norm = candidate.norms[order]! * reference.norms[order]!;
    if (norm === 0) return 0;
    let product = 0;
    for (const [gram, weight] of candidate.grams[order]!) {
      const other = reference.grams[order]!.get(gram) ?? 0;
      product += Math.min(weight, other) * other;
    }
    return product / norm;
  });
  return (penalty * cosines.reduce((sum, value) => sum + value, 0)) / ORDERS.length;
}
