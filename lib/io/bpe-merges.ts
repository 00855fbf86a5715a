// SentencePiece's BPE keeps a score per piece, tokenizer.json a list of merges in order. A piece can be merged from every pair of
// pieces that make it up; the better score comes first, among equals the pair whose parts are longer, as transformers orders
// them (SentencePieceExtractor).

import type { Piece } from './sentencepiece.js';

/** Longest piece that is cut into pairs, in characters. */
const MAX_CHARACTERS = 128;

interface Merge {
  left: string;
  right: string;
  score: number;
  leftLength: number;
  rightLength: number;
}

/** The merges that make `pieces`, best first; `vocab` holds their ids. */
export function bpeMerges(pieces: readonly Piece[], vocab: ReadonlyMap<string, number>): [string, string][] {
  const merges: Merge[] = [];
  for (const { text, score } of pieces) {
    const characters = [...text];
    if (characters.length > MAX_CHARACTERS) continue;
    const local: Merge[] = [];
    let left = '';
    for (let i = 1; i < characters.length; i++) {
      left += characters[i - 1]!;
      const right = text.slice(left.length);
      if (!vocab.has(left) || !vocab.has(right)) continue;
      local.push({ left, right, score, leftLength: i, rightLength: characters.length - i });
    }
    local.sort((a, b) => vocab.get(a.left)! - vocab.get(b.left)! || vocab.get(a.right)! - vocab.get(b.right)!);
    merges.push(...local);
  }
  merges.sort((a, b) => b.score - a.score || b.leftLength - a.leftLength || b.rightLength - a.rightLength);
  return merges.map(({ left, right }) => [left, right]);
}
