// Bans and penalty history, against the processors of transformers restated in the plainest way.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readFixture } from './support/safetensors-fixture.js';
import { LogitRules, type BanRules } from '../lib/engine/scheduling/logits.js';

const NONE: BanRules = { noRepeatNgramSize: 0, badWords: [], eosTokenIds: [0], minNewTokens: 0, penalizePrompt: true };

function banned(rules: Partial<BanRules>, prompt: number[], generated: number[] = []): number[] {
  const state = new LogitRules({ ...NONE, ...rules }, prompt);
  for (const id of generated) state.append(id);
  return [...new Set([...state.alwaysBanned.flatMap((ids) => [...ids]), ...state.banned()])].sort((a, b) => a - b);
}

/** Every id that would complete an n-gram that occurs already, by search. */
function repeats(tokens: number[], size: number): number[] {
  const ids = new Set<number>();
  if (tokens.length + 1 < size) return [];
  const tail = tokens.slice(tokens.length - (size - 1));
  for (let i = 0; i + size <= tokens.length; i++) {
    if (tail.every((id, j) => tokens[i + j] === id)) ids.add(tokens[i + size - 1]!);
  }
  return [...ids].sort((a, b) => a - b);
}

describe('rows that stand for no token', () => {
  it('are banned at every step, beside bad words', () => {
    const rules = { noTokens: Int32Array.of(7, 8), badWords: [[5], [1, 6]] };
    expect(banned(rules, [3, 1])).toEqual([5, 6, 7, 8]);
    expect(banned(rules, [3, 1], [2])).toEqual([5, 7, 8]);
  });

  it('are shared with what is forked', () => {
    const noTokens = Int32Array.of(7);
    const fork = new LogitRules({ ...NONE, noTokens }, [1]).fork();
    expect(fork.alwaysBanned).toContain(noTokens);
  });
});

describe('no-repeat n-grams', () => {
  it('bans what would repeat an n-gram of prompt and answer', () => {
    expect(banned({ noRepeatNgramSize: 3 }, [1, 2, 3, 1], [2])).toEqual([3]);
    expect(banned({ noRepeatNgramSize: 1 }, [5, 6], [5])).toEqual([5, 6]);
    expect(banned({ noRepeatNgramSize: 4 }, [1, 2])).toEqual([]);
  });

  it('agrees with a search over the whole sequence for any tokens, size and split', () => {
    const tokens = fc.array(fc.nat(3), { maxLength: 40 });
    fc.assert(
      fc.property(tokens, fc.integer({ min: 1, max: 5 }), fc.nat(40), (all, size, split) => {
        expect(banned({ noRepeatNgramSize: size }, all.slice(0, split), all.slice(split))).toEqual(repeats(all, size));
      }),
      { numRuns: 1000 },
    );
  });

  it('leaves the prompt out when told so', () => {
    expect(banned({ noRepeatNgramSize: 2, penalizePrompt: false }, [1, 2, 1], [])).toEqual([]);
    expect(banned({ noRepeatNgramSize: 2, penalizePrompt: false }, [1, 2], [1, 3, 1])).toEqual([3]);
  });

  it('never bans a placeholder without an id', () => {
    expect(banned({ noRepeatNgramSize: 1 }, [-1, -1, 4])).toEqual([4]);
    expect(banned({ noRepeatNgramSize: 2 }, [-1, -1, -1])).toEqual([]);
  });
});

describe('bad words', () => {
  it('bans a single token always and the last of several only after the others', () => {
    const badWords = [[7], [1, 2, 3]];
    expect(banned({ badWords }, [9, 1])).toEqual([7]);
    expect(banned({ badWords }, [9, 1], [2])).toEqual([3, 7]);
    expect(banned({ badWords }, [9, 2, 1], [])).toEqual([7]);
  });

  it('ignores a word that is just the end token, and one longer than the sequence', () => {
    expect(banned({ badWords: [[0]] }, [1])).toEqual([]);
    expect(banned({ badWords: [[1, 2]] }, [1])).toEqual([]); // as transformers: the word has two ids, the sequence one
    expect(banned({ badWords: [[1, 2]] }, [1, 1])).toEqual([2]);
  });
});

describe('minimum length', () => {
  it('bans every end token until enough new tokens exist', () => {
    const rules = { minNewTokens: 2, eosTokenIds: [0, 9] };
    expect(banned(rules, [1])).toEqual([0, 9]);
    expect(banned(rules, [1], [5])).toEqual([0, 9]);
    expect(banned(rules, [1], [5, 5])).toEqual([]);
  });
});

describe('penalty history', () => {
  it('lists each id of prompt and answer once, without placeholders', () => {
    const rules = new LogitRules(NONE, [-1, 3, 3, 4]);
    rules.append(5);
    rules.append(3);
    expect(rules.history).toEqual([3, 4, 5]);
  });

  it('lists only the answer when told so', () => {
    const rules = new LogitRules({ ...NONE, penalizePrompt: false }, [1, 2]);
    rules.append(7);
    expect(rules.history).toEqual([7]);
  });
});

interface SamplingCase {
  prefix: string;
  params: { no_repeat_ngram_size?: number; bad_words_ids?: number[][]; min_new_tokens?: number };
  eos_token_id: number;
  n_prompt_tokens: number;
}

describe('the sampling fixture', () => {
  const { json, tensors } = readFixture<{ cases: SamplingCase[] }>('sampling');
  const cases = json.cases.filter(({ prefix }) => /ngram|bad_words|min_new_tokens/.test(prefix));

  it('has cases of all three kinds', () => expect(cases.length).toBeGreaterThanOrEqual(8));

  it.each(cases.map((c) => [c.prefix, c] as const))('%s bans what transformers gives no probability', (prefix, c) => {
    const ids = [...tensors.get(`${prefix}input_ids`)!];
    const scores = [...tensors.get(`${prefix}processed_scores`)!];
    const rules: Partial<BanRules> = {
      noRepeatNgramSize: c.params.no_repeat_ngram_size ?? 0,
      badWords: c.params.bad_words_ids ?? [],
      minNewTokens: c.params.min_new_tokens ?? 0,
      eosTokenIds: [c.eos_token_id],
    };
    const expected = scores.flatMap((score, id) => (score === -Infinity ? [id] : []));
    expect(banned(rules, ids.slice(0, c.n_prompt_tokens), ids.slice(c.n_prompt_tokens))).toEqual(expected);
  });
});
