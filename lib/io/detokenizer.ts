// Streaming text of one growing sequence. Guarantees: the deltas joined, flush included, are exactly `decode(all ids)`; what was
// given out never changes; no delta ends inside a character. The price is that a run of byte tokens (rare characters, emoji) is
// given out when it ends, because the reference decodes an invalid run as a whole (see token-decoder.ts).

import type { TokenDecoder } from './token-decoder.js';
import type { TextTokenizer } from './tokenizer.js';

/** `promptIds` precede the sequence: they give the context for spaces, their text is not part of the result. */
export interface DetokenizerOptions {
  skipSpecialTokens?: boolean;
  promptIds?: Iterable<number>;
}

/** Decodes token by token; the cost per token does not depend on the length of the text. */
export class IncrementalDetokenizer {
  private readonly decoder: TokenDecoder;
  private readonly skipSpecialTokens: boolean;
  private given = '';

  constructor(
    private readonly tokenizer: TextTokenizer,
    options: DetokenizerOptions = {},
  ) {
    this.decoder = tokenizer.createDecoder();
    this.skipSpecialTokens = options.skipSpecialTokens ?? false;
    for (const id of options.promptIds ?? []) this.decode(id);
  }

  /** The text given out so far. */
  get text(): string {
    return this.given;
  }

  /** The text that is final with this id, '' while a character is incomplete. Throws INVALID_ARGUMENT for what is no id. */
  push(id: number): string {
    return this.give(this.decode(id));
  }

  /** What was still held back; call it once, after the last id. */
  flush(): string {
    return this.give(this.decoder.flush());
  }

  private decode(id: number): string {
    const token = this.tokenizer.tokenText(id, this.skipSpecialTokens);
    return token === undefined ? '' : this.decoder.push(token);
  }

  private give(delta: string): string {
    this.given += delta;
    return delta;
  }
}
