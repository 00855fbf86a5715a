// The precompiled normaliser of SentencePiece (T5: NFKC with rules for white space): a double-array trie from byte sequences to
// replacements. The tokenizer library approximates it by Unicode's NFKC, which keeps a few characters that the table drops.
// Follows the reference (spm_precompiled in Hugging Face tokenizers), whose unit is the grapheme: one of fewer than 6 bytes is
// looked up whole, then character by character; of several matching prefixes the shortest counts.
// Trie: darts-clone, https://github.com/s-yata/darts-clone.

import { QFormerError } from '../errors.js';

const MAX_GRAPHEME_BYTES = 5;
const graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' });
const encoder = new TextEncoder();
const decoder = new TextDecoder();
const PLAIN = /^[\x20-\x7e]*$/;

/** A function that normalises text by the table in `bytes`; `file` is used in messages. Throws FORMAT. */
export function compileCharsmap(bytes: Uint8Array, file: string): (text: string) => string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const trieBytes = bytes.length < 4 ? -1 : view.getUint32(0, true);
  if (trieBytes < 4 || trieBytes % 4 !== 0 || 4 + trieBytes > bytes.length) {
    throw new QFormerError('FORMAT', `${file}: the normaliser's table is damaged`, { file });
  }
  const trie = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const replacements = bytes.subarray(4 + trieBytes);
  const replace = (part: string): string | undefined => {
    const at = shortestMatch(trie, encoder.encode(part));
    if (at === undefined || at > replacements.length) return undefined;
    const end = replacements.indexOf(0, at);
    return decoder.decode(replacements.subarray(at, end < 0 ? undefined : end));
  };
  const keepsPlain = Array.from({ length: 0x5f }, (_, i) => replace(String.fromCharCode(0x20 + i))).every(
    (replacement) => replacement === undefined,
  );
  return (text) => {
    if (keepsPlain && PLAIN.test(text)) return text;
    let result = '';
    for (const { segment } of graphemes.segment(text)) {
      const whole = encoder.encode(segment).length <= MAX_GRAPHEME_BYTES ? replace(segment) : undefined;
      result += whole ?? Array.from(segment, (character) => replace(character) ?? character).join('');
    }
    return result;
  };
}

/** Place of the replacement of the shortest prefix of `key` that the trie knows. */
function shortestMatch(trie: Uint32Array, key: Uint8Array): number | undefined {
  let node = offsetOf(trie[0]!);
  for (const byte of key) {
    if (byte === 0) return undefined;
    node ^= byte;
    const unit = trie[node];
    // The highest bit marks a value, which no byte equals.
    if (unit === undefined || (unit & 0x8000_00ff) >>> 0 !== byte) return undefined;
    node ^= offsetOf(unit);
    if ((unit & 0x100) !== 0) return (trie[node] ?? 0) & 0x7fff_ffff;
  }
  return undefined;
}

const offsetOf = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);
