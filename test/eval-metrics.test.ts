// Metrics against values computed by hand from their definitions.

import { describe, expect, it } from 'vitest';
import { bleu4, ciderD } from '../lib/eval/captions.js';
import { recallAtK } from '../lib/eval/recall.js';
import { normalizeAnswer, vqaAccuracy } from '../lib/eval/vqa.js';
import { words } from '../lib/eval/words.js';

describe('the words of a caption', () => {
  it.each([
    ["A man's T-shirt, isn't it?", ['a', 'man', "'s", 't-shirt', 'is', "n't", 'it']],
    ["They’re here... can't go!", ['they', "'re", 'here', 'ca', "n't", 'go']],
    ['Two 3.5-inch disks (red); 50%', ['two', '3.5-inch', 'disks', 'red', '50%']],
    ['蓝色T恤。A cat', ['蓝', '色', 't', '恤', 'a', 'cat']],
    ['  ...  ', []],
  ])('%j', (text, expected) => expect(words(text)).toEqual(expected));
});

describe('BLEU-4', () => {
  it('is 1 for a reference itself, whatever the other references', () => {
    expect(bleu4([{ text: 'the cat sat on the mat', references: ['a dog', 'The cat sat on the mat.'] }])).toBe(1);
  });

  it('is the geometric mean of the precisions', () => {
    // 4/5 · 3/4 · 2/3 · 1/2 = 1/5
    expect(bleu4([{ text: 'a b c d e', references: ['a b c d f'] }])).toBeCloseTo(0.2 ** 0.25, 12);
  });

  it('punishes what is shorter than the closest reference', () => {
    const references = ['a b c d e', 'a b c d e f g h i'];
    expect(bleu4([{ text: 'a b c d', references }])).toBeCloseTo(Math.exp(1 - 5 / 4), 12);
  });

  it('counts an n-gram as often as the reference that has it most', () => {
    // unigrams 4 of 5, bigrams 3 of 4, trigrams 2 of 3, 4-grams 1 of 2: the second `a` is in no reference twice
    const text = 'a a b c d';
    expect(bleu4([{ text, references: ['a b c d x'] }])).toBeCloseTo(0.2 ** 0.25, 12);
    expect(bleu4([{ text, references: ['a b c d x', 'a y a z w'] }])).toBeCloseTo(
      (1 * 0.75 * (2 / 3) * 0.5) ** 0.25,
      12,
    );
  });

  it('adds up over the corpus before it divides, and is 0 without a common 4-gram', () => {
    const cases = [
      { text: 'a b c d e', references: ['a b c d e'] },
      { text: 'f g h', references: ['x y z'] },
    ];
    // 5/8 · 4/6 · 3/4 · 2/2
    expect(bleu4(cases)).toBeCloseTo(((5 / 8) * (4 / 6) * (3 / 4)) ** 0.25, 12);
    expect(bleu4([cases[1]!])).toBe(0);
  });
});

describe('CIDEr-D', () => {
  const other = { text: 'x y', references: ['x y'] };

  it('gives each order a quarter of 10 where it agrees', () => {
    // orders 3 and 4 have no n-grams in captions of two words
    expect(ciderD([{ text: 'a b', references: ['a b'] }, other])).toBeCloseTo(5, 12);
  });

  it('is the cosine of the weighted counts', () => {
    // unigrams {a, b} and {a, c}, all of weight ln 2: 1/2; no common bigram. The other image has 5.
    expect(ciderD([{ text: 'a b', references: ['a c'] }, other])).toBeCloseTo((10 * 0.5 * 0.25 + 5) / 2, 12);
  });

  it('punishes another number of bigrams', () => {
    // 3 bigrams against 1; unigrams 2 / (2 · √2), bigrams 1 / √3
    const score = (10 * Math.exp(-4 / 72) * (1 / Math.SQRT2 + 1 / Math.sqrt(3))) / 4;
    expect(ciderD([{ text: 'a b c d', references: ['a b'] }, other])).toBeCloseTo((score + 5) / 2, 12);
  });

  it('clips repetition at the reference', () => {
    // counts 3 and 1: min(3, 1) · 1 / (3 · 1) for unigrams; `a a` is in no reference; 2 bigrams against 0
    const score = (10 * Math.exp(-4 / 72) * (1 / 3)) / 4;
    expect(ciderD([{ text: 'a a a', references: ['a'] }, other])).toBeCloseTo((score + 5) / 2, 12);
  });

  it('gives no weight to what every image has, and averages over references', () => {
    const shared = [
      { text: 'the', references: ['the', 'the'] },
      { text: 'the', references: ['the'] },
    ];
    expect(ciderD(shared)).toBe(0);
    expect(ciderD([{ text: 'a b', references: ['a b', 'p q'] }, other])).toBeCloseTo((2.5 + 5) / 2, 12);
  });
});

describe('VQA accuracy', () => {
  const annotators = (yes: number) => [...Array<string>(yes).fill('yes'), ...Array<string>(10 - yes).fill('no')];

  // Leaving each annotator out in turn: with 2 of 10, two see one agreeing other (1/3) and eight see two (2/3).
  it.each([
    [0, 0],
    [1, 0.3],
    [2, 0.6],
    [3, 0.9],
    [4, 1],
    [10, 1],
  ])('with %i of 10 agreeing is %f', (agreeing, expected) => {
    expect(vqaAccuracy('Yes.', annotators(agreeing))).toBeCloseTo(expected, 12);
  });

  it.each([
    ['The  red\tcar.', 'red car'],
    ['Two dogs', '2 dogs'],
    ['None', '0'],
    ['dont know', "don't know"],
    ['its 10:30', 'its 10:30'],
    ['black/white', 'black white'],
    ['black / white', 'black white'],
    ['black, white', 'black white'],
    ['1,000 - yes', '1000 yes'],
    ['1,000-yes', '1000yes'],
    ['3.5', '3.5'],
    ['U.S.A.', 'usa'],
    ["twas couldntve couldnt've", "'twas couldntve couldn't've"],
    ['', ''],
  ])('normalises %j to %j', (answer, expected) => expect(normalizeAnswer(answer)).toBe(expected));

  it('settles the punctuation of the annotators only where they disagree', () => {
    expect(vqaAccuracy('t shirt', ['t-shirt', 't-shirt', 't-shirt', 't-shirt', 'shirt'])).toBe(1);
    expect(vqaAccuracy('t shirt', ['t-shirt', 't-shirt', 't-shirt', 't-shirt'])).toBe(0);
  });
});

describe('Recall@K', () => {
  const ranked = [
    ['a', 'b', 'c'],
    ['b', 'c', 'a'],
    ['c', 'a', 'b'],
  ];
  it.each([
    [1, 1 / 3],
    [2, 2 / 3],
    [3, 1],
    [10, 1],
  ])('at %i', (k, expected) => expect(recallAtK(ranked, [['a'], ['a', 'd'], ['a']], k)).toBeCloseTo(expected, 12));
});
