// Which tokens a sequence must not produce next, and which ones its repetition penalty sees. Follows the logits processors of
// transformers (NoRepeatNGram, NoBadWords, MinNewTokens); kept up to date token by token, so that a step costs the size of
// its answer and not the length of the sequence.

/** Rules of one sequence. */
export interface BanRules {
  /** 0: off. */
  noRepeatNgramSize: number;
  /** Token id sequences that must not be completed. */
  badWords: readonly (readonly number[])[];
  /** Ids that stand for no token: thousands, where an embedding table has many spare rows. None is an end-of-sequence token. */
  noTokens?: Int32Array;
  /** Banned until `minNewTokens` tokens were generated. */
  eosTokenIds: readonly number[];
  minNewTokens: number;
  /** False: penalty and n-grams see generated tokens only. */
  penalizePrompt: boolean;
}

/** Bad words of one id, and of several. */
interface BadWords {
  ids: Int32Array;
  longer: readonly (readonly number[])[];
}

/** An end-of-sequence token alone is no bad word. */
function splitBadWords({ badWords, eosTokenIds }: BanRules): BadWords {
  const ids = badWords.filter((word) => word.length === 1).map((word) => word[0]!);
  return {
    ids: Int32Array.from(ids.filter((id) => !eosTokenIds.includes(id))),
    longer: badWords.filter((word) => word.length > 1),
  };
}

/** Banned tokens and penalty history of one sequence. Negative ids (image placeholders outside the vocabulary) are never listed. */
export class LogitRules {
  /** Distinct ids seen so far, in order of first appearance. */
  readonly history: number[] = [];
  readonly #seen = new Set<number>();
  /** Ids that followed each (n - 1)-gram. */
  readonly #followers = new Map<string, number[]>();
  readonly #visible: number[] = [];
  readonly #tokens: number[];
  readonly #badWords: BadWords;
  #generated = 0;

  constructor(
    private readonly rules: BanRules,
    prompt: readonly number[],
    badWords = splitBadWords(rules),
  ) {
    this.#tokens = [...prompt];
    this.#badWords = badWords;
    if (rules.penalizePrompt) for (const id of prompt) this.#see(id);
  }

  /** The rules of a sequence that begins with the same tokens and goes on by itself. */
  fork(): LogitRules {
    const copy = new LogitRules(this.rules, [], this.#badWords);
    copy.history.push(...this.history);
    for (const id of this.#seen) copy.#seen.add(id);
    for (const [key, ids] of this.#followers) copy.#followers.set(key, [...ids]);
    copy.#visible.push(...this.#visible);
    copy.#tokens.push(...this.#tokens);
    copy.#generated = this.#generated;
    return copy;
  }

  /** Takes note of a generated token. */
  append(id: number): void {
    this.#tokens.push(id);
    this.#generated++;
    this.#see(id);
  }

  /** The ids that must never come. */
  get alwaysBanned(): readonly Int32Array[] {
    const { noTokens } = this.rules;
    return noTokens === undefined ? [this.#badWords.ids] : [this.#badWords.ids, noTokens];
  }

  /** The ids that must not come next beside those; may repeat an id. */
  banned(): number[] {
    const banned = [...this.#repeats()];
    for (const word of this.#badWords.longer) if (this.#endsBefore(word)) banned.push(word[word.length - 1]!);
    if (this.#generated < this.rules.minNewTokens) banned.push(...this.rules.eosTokenIds);
    return banned;
  }

  #see(id: number): void {
    if (id >= 0 && !this.#seen.has(id)) {
      this.#seen.add(id);
      this.history.push(id);
    }
    const size = this.rules.noRepeatNgramSize;
    if (size === 0) return;
    if (this.#visible.length >= size - 1 && id >= 0) {
      const key = this.#tail(size - 1);
      const followers = this.#followers.get(key);
      if (followers === undefined) this.#followers.set(key, [id]);
      else followers.push(id);
    }
    this.#visible.push(id);
  }

  #repeats(): readonly number[] {
    const size = this.rules.noRepeatNgramSize;
    if (size === 0 || this.#visible.length < size - 1) return [];
    return this.#followers.get(this.#tail(size - 1)) ?? [];
  }

  #tail(length: number): string {
    return length === 0 ? '' : this.#visible.slice(-length).join(' ');
  }

  /** Whether the sequence ends with all of `word` but its last id; as in transformers a word longer than the sequence never counts. */
  #endsBefore(word: readonly number[]): boolean {
    const start = this.#tokens.length - (word.length - 1);
    if (word.length > this.#tokens.length) return false;
    for (let i = 0; i < word.length - 1; i++) if (this.#tokens[start + i] !== word[i]) return false;
    return true;
  }
}
