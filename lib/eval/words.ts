// Words of captions, for n-gram metrics. After the Penn Treebank rules that the COCO evaluation uses, as far as captions need
// them: lower case, contractions split (`isn't` → `is n't`), punctuation dropped, hyphenated words whole. Chinese and Japanese
// characters count as a word each, because those languages write no spaces.

const CJK = String.raw`[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}]`;
const LETTER = String.raw`(?!n't\b|${CJK})[\p{L}\p{M}\p{N}&$%#@]`;
const WORD = new RegExp(String.raw`${CJK}|n't\b|'(?:s|re|ve|ll|d|m)\b|(?:${LETTER})+(?:[-./,](?:${LETTER})+)*`, 'gu');

/** The words of `text`. */
export function words(text: string): string[] {
  const lower = text.toLowerCase().replace(/[‘’]/g, "'");
  return lower.match(WORD) ?? [];
}

/** How often each n-gram occurs. */
export function ngrams(tokens: readonly string[], n: number): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i + n <= tokens.length; i++) {
    const gram = tokens.slice(i, i + n).join(' ');
    counts.set(gram, (counts.get(gram) ?? 0) + 1);
  }
  return counts;
}
