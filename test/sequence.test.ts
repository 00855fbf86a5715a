// One request: visible text with stop strings, when it is finished, what it reports.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { resolveParams, type GenerateParams } from '../lib/engine/params.js';
import { Sequence } from '../lib/engine/scheduling/sequence.js';
import { TextStream, type Detokenizer } from '../lib/engine/scheduling/text-stream.js';
import { EOS, LetterDetokenizer, fakeSequence } from './support/fake-runner.js';

/** Ids are indices into a list of pieces; '\u0000' marks a piece whose character is unfinished until the next one. */
class PieceDetokenizer implements Detokenizer {
  constructor(private readonly pieces: readonly string[]) {}
  push(id: number): string {
    return this.pieces[id]!;
  }
  flush(): string {
    return '';
  }
}

function stream(
  pieces: readonly string[],
  stops: readonly string[],
  trim = false,
): { emitted: string[]; text: string; stopped: boolean } {
  const out = new TextStream(new PieceDetokenizer(pieces), stops, trim);
  const emitted: string[] = [];
  for (let i = 0; i < pieces.length && !out.stopped; i++) emitted.push(out.push(i));
  emitted.push(out.finish());
  return { emitted, text: out.text, stopped: out.stopped };
}

describe('stop strings', () => {
  it('end the text in front of the stop, wherever the token borders lie', () => {
    expect(stream(['one ', 'E', 'N', 'D two'], ['END'])).toMatchObject({ text: 'one ', stopped: true });
    expect(stream(['one END two'], ['END']).text).toBe('one ');
    expect(stream(['END'], ['END']).text).toBe('');
  });

  it('hold text back only as long as it can become a stop', () => {
    expect(stream(['a E', 'N', 'X', 'E'], ['END']).emitted).toEqual(['a ', '', 'ENX', '', 'E']);
  });

  it('choose the one that begins first', () => {
    expect(stream(['xabcde'], ['cd', 'bcde']).text).toBe('xa');
  });

  it('are found after a false start that overlaps the real one', () => {
    expect(stream(['a', 'a', 'a', 'b', 'z'], ['aab'])).toMatchObject({ text: 'a', stopped: true });
  });

  it('never leak a part of themselves, and change nothing else, for any pieces', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 3 });
    const stop = fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(fc.array(text, { maxLength: 12 }), fc.array(stop, { maxLength: 3 }), (pieces, stops) => {
        const whole = pieces.join('');
        const cuts = stops.map((s) => whole.indexOf(s)).filter((at) => at >= 0);
        // A stop ends the text as soon as the pieces show it, so a later token cannot move the cut forward.
        const result = stream(pieces, stops);
        expect(result.emitted.join('')).toBe(result.text);
        expect(result.stopped).toBe(cuts.length > 0);
        if (cuts.length === 0) expect(result.text).toBe(whole);
        else {
          expect(whole.startsWith(result.text)).toBe(true);
          expect(stops.some((s) => whole.startsWith(s, result.text.length))).toBe(true);
        }
        for (const s of stops) expect(result.text.includes(s)).toBe(false);
      }),
      { numRuns: 2000 },
    );
  });
});

describe('a trimmed text', () => {
  it('has no white space around it, streamed or whole', () => {
    const { emitted, text } = stream([' ', ' a', ' ', '\n b ', ' ', '\n'], [], true);
    expect(emitted).toEqual(['', 'a', '', ' \n b', '', '', '']);
    expect(text).toBe('a \n b');
    expect(stream([' ', '\n'], [], true).text).toBe('');
  });

  it('still ends at a stop that is white space itself', () => {
    expect(stream(['\n', 'a'], ['\n'], true)).toMatchObject({ text: '', stopped: true });
    expect(stream([' a ', '\n', 'b'], ['\n'], true)).toMatchObject({ text: 'a', stopped: true });
  });
});

function generate(
  ids: number[],
  params: GenerateParams,
  maxTokens = 1000,
): { finished: (string | undefined)[]; sequence: Sequence } {
  const sequence = fakeSequence(1, { prompt: [1, 2, 3], params });
  const finished = ids.map((id) => sequence.append(id, undefined, maxTokens, 0).finished);
  return { finished, sequence };
}

describe('a sequence is finished', () => {
  it('by the end token, which counts as a token and has no text', () => {
    const { finished, sequence } = generate([1, 2, EOS], {});
    expect(finished).toEqual([undefined, undefined, 'stop']);
    expect(sequence.result('stop', 0)).toMatchObject({ text: 'ab', tokenIds: [1, 2, EOS], finishReason: 'stop' });
  });

  it('not by the end token when told to ignore it', () => {
    expect(generate([EOS, EOS], { ignoreEos: true }).finished).toEqual([undefined, undefined]);
  });

  it('by its number of new tokens and by the context', () => {
    expect(generate([1, 1], { maxNewTokens: 2 }).finished).toEqual([undefined, 'length']);
    expect(generate([1, 1], { maxNewTokens: 20 }, 5).finished).toEqual([undefined, 'length']);
  });

  it('by a stop string, but not before the minimum length', () => {
    expect(generate([1, 2, 3], { stop: 'bc' }).finished).toEqual([undefined, undefined, 'stop']);
    const late = generate([2, 3, 2, 3], { stop: 'bc', minNewTokens: 3 });
    expect(late.finished).toEqual([undefined, undefined, undefined, 'stop']);
    expect(late.sequence.result('stop', 0).text).toBe('bc');
  });

  it('with the held text shown when the answer ends without the stop', () => {
    const { sequence } = generate([1, 2], { stop: 'bx', maxNewTokens: 2 });
    expect(sequence.result('length', 0).text).toBe('ab');
  });

  it('and shows the rest of an unfinished character at the end', () => {
    class Unfinished implements Detokenizer {
      push(): string {
        return '';
      }
      flush(): string {
        return '\ufffd';
      }
    }
    const params = resolveParams({ maxNewTokens: 1 });
    const sequence = new Sequence({
      id: 1,
      promptTokens: [1],
      params,
      eosTokenIds: [],
      detokenizer: () => new Unfinished(),
      arrival: 0,
    });
    expect(sequence.append(4, undefined, 99, 0)).toEqual({
      delta: { text: '\ufffd', tokenIds: [4] },
      finished: 'length',
    });
  });
});

describe('a result', () => {
  it('reports tokens, times in ms since arrival, and the seed', () => {
    const sequence = new Sequence({
      id: 1,
      promptTokens: [9, 9, 1, 2],
      imagePositions: [0, 1],
      params: resolveParams({ seed: 42 }),
      eosTokenIds: [EOS],
      detokenizer: () => new LetterDetokenizer(),
      arrival: 100,
    });
    sequence.markStarted(110, 3);
    sequence.markStarted(500, 1); // running again after a preemption does not start it anew
    sequence.timer.imageMs = 5;
    sequence.append(1, undefined, 99, 130);
    sequence.append(2, undefined, 99, 150);
    sequence.append(3, undefined, 99, 170);
    const result = sequence.result('abort', 171);
    expect(result.usage).toEqual({ promptTokens: 4, completionTokens: 3, cachedTokens: 3, imageTokens: 2 });
    expect(result.timings).toEqual({
      queueMs: 10,
      imageMs: 5,
      prefillMs: 15,
      decodeMs: 40,
      timeToFirstTokenMs: 30,
      totalMs: 71,
      tokensPerSecond: 50,
    });
    expect(result.seed).toBe(42);
    expect(result).not.toHaveProperty('logprobs');
  });

  it('carries log-probabilities only when they were asked for', () => {
    const sequence = fakeSequence(1, { prompt: [1], params: { logprobs: true } });
    sequence.append(1, { tokenId: 1, logprob: -0.5 }, 99, 0);
    expect(sequence.result('stop', 0).logprobs).toEqual([{ tokenId: 1, logprob: -0.5 }]);
  });
});

describe('resolveParams', () => {
  it.each<[keyof GenerateParams, unknown]>([
    ['maxNewTokens', 0],
    ['maxNewTokens', 1.5],
    ['maxNewTokens', '3'],
    ['minNewTokens', -1],
    ['temperature', -0.1],
    ['temperature', Number.NaN],
    ['topK', -1],
    ['topP', 1.1],
    ['minP', -1],
    ['repetitionPenalty', 0],
    ['repetitionPenalty', Infinity],
    ['noRepeatNgramSize', 0.5],
    ['badWords', ['']],
    ['badWords', [[]]],
    ['badWords', 'word'],
    ['stop', ''],
    ['stop', [1]],
    ['seed', -1],
    ['seed', 2 ** 53],
    ['logprobs', 21],
    ['ignoreEos', 1],
    ['penalizePrompt', 'no'],
  ])('refuses %s = %j by name', (name, value) => {
    const wrong = { [name]: value } as GenerateParams;
    expect(() => resolveParams(wrong)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => resolveParams(wrong)).toThrow(name);
  });

  it('refuses a misspelt option and a minimum above the maximum', () => {
    expect(() => resolveParams({ maxTokens: 3 } as GenerateParams)).toThrow(/maxTokens/);
    expect(() => resolveParams({ maxNewTokens: 3, minNewTokens: 4 })).toThrow(/minNewTokens/);
  });

  it('takes sampling defaults from the checkpoint only where it samples', () => {
    const defaults = { temperature: 0.7, topP: 0.9, topK: 50, maxNewTokens: 9 };
    expect(resolveParams({}, defaults)).toMatchObject({ temperature: 0, topP: 1, topK: 0, maxNewTokens: 9 });
    expect(resolveParams({}, { ...defaults, doSample: true })).toMatchObject({ temperature: 0.7, topP: 0.9, topK: 50 });
    expect(resolveParams({ temperature: 0 }, { ...defaults, doSample: true }).temperature).toBe(0);
  });

  it('chooses a different seed each time and says which', () => {
    expect(resolveParams().seed).not.toBe(resolveParams().seed);
  });
});
