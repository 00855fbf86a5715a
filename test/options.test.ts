// Options by name and by value, and the prompts a model folder may bring.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { captionParams, checkChatOptions, checkLoadOptions, promptParams, requestParams } from '../lib/options.js';
import { PromptTemplates, readPromptConfig } from '../lib/prompts.js';

const invalid = (message: RegExp) =>
  expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) });

describe('a caption', () => {
  const blip2 = new PromptTemplates('blip-2').captionOptions;
  const instructblip = new PromptTemplates('instructblip').captionOptions;

  it('has five beams in BLIP-2 and InstructBLIP, with the lengths and penalty of LAVIS', () => {
    expect(captionParams({}, blip2)).toEqual({ numBeams: 5, maxNewTokens: 30, minNewTokens: 1 });
    expect(captionParams({}, instructblip)).toEqual({
      numBeams: 5,
      maxNewTokens: 256,
      minNewTokens: 1,
      repetitionPenalty: 1.5,
      penalizePrompt: false,
    });
  });

  it('has those of the caller before those, and those of qformer.json in their place', () => {
    expect(captionParams({ numBeams: 3, maxNewTokens: 9 }, blip2)).toMatchObject({ numBeams: 3, maxNewTokens: 9 });
    const { captionOptions } = new PromptTemplates('blip-2', { captionOptions: { numBeams: 2, lengthPenalty: 0.6 } });
    expect(captionParams({}, captionOptions)).toEqual({ numBeams: 2, lengthPenalty: 0.6 });
    expect(captionParams({ numBeams: 1 }, captionOptions)).toEqual({ numBeams: 1 });
  });

  it('has no beams where it is sampled or log-probabilities are asked for', () => {
    for (const options of [{ temperature: 0.5 }, { topK: 5 }, { topP: 0.9 }, { minP: 0.1 }, { logprobs: 2 }]) {
      expect(captionParams(options, blip2)).toEqual({ maxNewTokens: 30, minNewTokens: 1, ...options });
    }
  });

  it('may have options of a beam search where the model searches', () => {
    const options = { lengthPenalty: 2, numReturnSequences: 5, earlyStopping: true };
    expect(captionParams(options, blip2)).toMatchObject({ ...options, numBeams: 5 });
    expect(() => captionParams(options, {})).toThrow(invalid(/needs numBeams above 1/));
    expect(() => captionParams({ numReturnSequences: 6 }, blip2)).toThrow(invalid(/numReturnSequences.*from 1 to 5/));
  });
});

describe('request options', () => {
  it('are refused by name when misspelt, with the name that was meant', () => {
    expect(() => requestParams('answer', { maxTokens: 5 } as never)).toThrow(
      invalid(/answer: unknown option 'maxTokens'/),
    );
    expect(() => requestParams('answer', { topp: 0.5 } as never)).toThrow(invalid(/did you mean 'topP'/));
    expect(() => requestParams('answer', { lang: 'en' } as never)).toThrow(invalid(/'lang'/));
    expect(() => promptParams({ images: [] } as never)).toThrow(invalid(/did you mean 'image'/));
  });

  const wrongValues: [string, unknown][] = [
    ['maxNewTokens', 0],
    ['maxNewTokens', -1],
    ['maxNewTokens', 1.5],
    ['maxNewTokens', Number.NaN],
    ['maxNewTokens', '5'],
    ['maxNewTokens', 2 ** 31],
    ['minNewTokens', -1],
    ['temperature', -0.1],
    ['temperature', Number.NaN],
    ['temperature', Number.POSITIVE_INFINITY],
    ['topK', -1],
    ['topK', 0.5],
    ['topP', 1.01],
    ['topP', Number.NaN],
    ['minP', -0.5],
    ['repetitionPenalty', 0],
    ['noRepeatNgramSize', -2],
    ['badWords', 'word'],
    ['badWords', ['']],
    ['stop', ''],
    ['stop', [1]],
    ['seed', -1],
    ['seed', 2 ** 53],
    ['seed', 0.5],
    ['logprobs', 21],
    ['logprobs', 'yes'],
    ['signal', {}],
    ['raw', 1],
    ['exif', 'true'],
    ['ignoreEos', 0],
    ['numBeams', 0],
    ['numBeams', 2.5],
    ['numBeams', 65],
    ['numReturnSequences', 2],
    ['lengthPenalty', 1],
    ['earlyStopping', true],
  ];
  it.each(wrongValues)('refuse %s = %j and name it', (option, value) => {
    expect(() => requestParams('answer', { [option]: value })).toThrow(invalid(new RegExp(option)));
  });

  it.each([
    ['temperature', 0.5],
    ['topK', 3],
    ['topP', 0.9],
    ['minP', 0.1],
    ['logprobs', true],
    ['numReturnSequences', 4],
    ['lengthPenalty', Number.NaN],
    ['lengthPenalty', 101],
    ['earlyStopping', 'always'],
  ])('of a beam search refuse %s = %j and name it', (option, value) => {
    expect(() => requestParams('answer', { numBeams: 3, [option]: value })).toThrow(invalid(new RegExp(option)));
  });

  it('of a beam search may say that it does not sample', () => {
    const params = {
      numBeams: 3,
      temperature: 0,
      topP: 1,
      topK: 0,
      numReturnSequences: 3,
      earlyStopping: 'never' as const,
    };
    expect(requestParams('answer', params)).toEqual(params);
  });

  it('refuse a smallest length above the largest', () => {
    expect(() => requestParams('answer', { minNewTokens: 6, maxNewTokens: 5 })).toThrow(invalid(/minNewTokens/));
  });

  it('may be undefined, one by one or all', () => {
    expect(requestParams('answer', { maxNewTokens: undefined, signal: undefined, topK: 3 })).toEqual({ topK: 3 });
    expect(requestParams('answer', {})).toEqual({});
  });

  it('that are not an object are refused', () => {
    for (const options of [null, 5, 'x', []]) {
      expect(() => requestParams('answer', options as never)).toThrow(invalid(/options must be an object/));
    }
  });

  it('hand the engine its own and keep the others', () => {
    const { signal } = new AbortController();
    const options = { lang: 'zh', prompt: 'x', raw: true, exif: true, signal, seed: 1, stop: ['.'] };
    expect(captionParams(options)).toEqual({ seed: 1, stop: ['.'] });
  });
});

describe('load and chat options', () => {
  it.each([
    ['device', 'gpu'],
    ['device', 'cuda:x'],
    ['dtype', 'int8'],
    ['threads', 0],
    ['threads', 2.5],
    ['kvCacheTokens', -1],
    ['maxBatchSize', Number.NaN],
    ['maxImagePixels', '10'],
    ['prefixCache', 1],
    ['quantizeActivations', 'int8'],
    ['allowHttp', 'no'],
    ['signal', 'x'],
    ['onProgress', {}],
  ])('refuse %s = %j and name it', (option, value) => {
    expect(() => checkLoadOptions({ [option]: value })).toThrow(invalid(new RegExp(`'${option}' must be`)));
  });

  it('accept every documented value', () => {
    for (const device of ['auto', 'cpu', 'cuda', 'cuda:3'] as const) checkLoadOptions({ device });
    for (const quantize of ['int8', 'int4'] as const) checkLoadOptions({ quantize, quantizeActivations: true });
    for (const dtype of ['auto', 'f32', 'f16', 'bf16'] as const)
      checkLoadOptions({ dtype, threads: 1, onProgress: () => undefined });
    checkChatOptions({ images: ['a.png'], system: '' });
  });

  it('refuse what a chat does not know', () => {
    expect(() => checkChatOptions({ image: 'a.png' } as never)).toThrow(invalid(/did you mean 'images'/));
    expect(() => checkChatOptions({ system: 5 as never })).toThrow(invalid(/'system' must be a string/));
  });
});

describe("a model folder's qformer.json", () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'qformer-options-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));
  const read = (content: string) => {
    writeFileSync(join(dir, 'qformer.json'), content);
    return readPromptConfig(dir);
  };

  it('may be absent', () => {
    expect(new PromptTemplates('instructblip', readPromptConfig(dir)).caption()).toBe('A short image caption.');
  });

  it('brings caption prompts by language, the first one the default', () => {
    const prompts = new PromptTemplates('instructblip', read('{"captionPrompt":{"zh":"描述","en":"Describe"}}'));
    expect(prompts.languages).toEqual(['zh', 'en']);
    expect([prompts.caption(), prompts.caption('en')]).toEqual(['描述', 'Describe']);
    expect(() => prompts.caption('fr')).toThrow(invalid(/no caption prompt in 'fr' \(known: zh, en\)/));
    expect(() => prompts.caption('constructor')).toThrow(invalid(/no caption prompt/));
  });

  it('brings the template of a question', () => {
    expect(new PromptTemplates('instructblip', read('{"answerPrompt":"Q: {question}\\nA:"}')).answer('Why?')).toBe(
      'Q: Why?\nA:',
    );
  });

  it('brings the pieces of a chat', () => {
    const config = read('{"chatTurn":"U: {question}\\nA:","chatReply":" {answer}\\n","chatStop":["U:"]}');
    const prompts = new PromptTemplates('instructblip', config);
    expect(prompts.turn([{ question: 'a', answer: 'b ' }], 'c')).toBe('U: a\nA: b\nU: c\nA:');
    expect(prompts.stop).toEqual(['U:']);
  });

  it.each([
    ['{', /not valid JSON/],
    ['[]', /JSON object/],
    ['{"captionPrompt":5}', /captionPrompt/],
    ['{"captionPrompt":{}}', /captionPrompt/],
    ['{"captionPrompt":{"en":1}}', /captionPrompt/],
    ['{"answerPrompt":"no place"}', /answerPrompt.*\{question\}/],
    ['{"chatTurns":-1}', /chatTurns/],
    ['{"chatTurn":"no place"}', /chatTurn must contain '\{question\}'/],
    ['{"chatReply":"no place"}', /chatReply must contain '\{answer\}'/],
    ['{"chatStop":[""]}', /chatStop/],
    ['{"chatStop":"<human>"}', /chatStop/],
    ['{"captionOptions":5}', /captionOptions/],
    ['{"captionOptions":{"numBeams":0}}', /captionOptions.numBeams/],
    ['{"captionOptions":{"penalizePrompt":1}}', /captionOptions.penalizePrompt/],
  ])('that holds %s is a FORMAT error naming file and key', (content, message) => {
    const error = expect.objectContaining({ code: 'FORMAT', message: expect.stringMatching(message) });
    expect(() => read(content)).toThrow(error);
    expect(() => read(content)).toThrow(/qformer\.json/);
  });
});
