// Conversations: which prompt a turn makes, and what stays in the history.

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Model } from '../lib/model.js';
import { PromptTemplates } from '../lib/prompts.js';
import { modelDouble } from './support/engine-double/model.js';

const turns = [
  { question: 'Where is it?', answer: 'singapore' },
  { question: 'Why?', answer: ' It has a statue.' },
];

describe('the prompt of a turn', () => {
  it('is the question alone at the start, in the template of the architecture', () => {
    expect(new PromptTemplates('instructblip').turn([], 'Why?')).toBe('Why?');
    expect(new PromptTemplates('blip-2').turn([], 'Why?')).toBe('Question: Why? Answer:');
    const flanT5 = new PromptTemplates('blip-2', {}, undefined, 't5');
    expect(flanT5.answer('Why?')).toBe('Question: Why? Short answer:');
  });

  it('repeats the turns before it, each answer ended once', () => {
    const expected =
      'Question: Where is it? Answer: singapore. Question: Why? Answer: It has a statue. Question: And? Answer:';
    expect(new PromptTemplates('instructblip').turn(turns, 'And?')).toBe(expected);
  });

  it('begins with the system text', () => {
    expect(new PromptTemplates('instructblip').turn([], 'Why?', 'Be brief.')).toBe('Be brief. Why?');
  });

  it('repeats as many turns as the model folder says', () => {
    expect(new PromptTemplates('instructblip', { chatTurns: 0 }).turn(turns, 'And?')).toBe('And?');
    const one = new PromptTemplates('instructblip', { chatTurns: 1 }).turn(turns, 'And?');
    expect(one).toBe('Question: Why? Answer: It has a statue. Question: And? Answer:');
  });

  it('keeps dollar signs of a question as they are', () => {
    expect(new PromptTemplates('blip-2').answer('$& $1 $$?')).toBe('Question: $& $1 $$? Answer:');
  });
});

describe('the prompt of a turn of Ziya-Visual', () => {
  const names = { human: '<human>', assistant: '<bot>', prefix: '' };
  const prompts = new PromptTemplates('blip-2', {}, names);

  it('names the two sides, and gives each answer a line', () => {
    expect(prompts.answer('Why?')).toBe('<human>: Why?\n<bot>:');
    expect(prompts.turn(turns, 'And?')).toBe(
      '<human>: Where is it?\n<bot>: singapore\n<human>: Why?\n<bot>: It has a statue.\n<human>: And?\n<bot>:',
    );
  });

  it('begins with the prefix of the configuration and the system text', () => {
    const prefixed = new PromptTemplates('blip-2', {}, { ...names, prefix: 'Hello. ' });
    expect(prefixed.turn([], 'Why?', 'Be brief.')).toBe('Hello. Be brief.\n<human>: Why?\n<bot>:');
    expect(prefixed.caption('en')).toBe('Hello. <human>: Describe this image.\n<bot>:');
  });

  it('stops where the model begins to write the other side’s turn', () => {
    expect(prompts.stop).toEqual(['<human>']);
    expect(new PromptTemplates('blip-2').stop).toEqual([]);
  });

  it('can be replaced by the model folder, here with the layout of the language model’s own training', () => {
    const config = { chatTurn: '<human>:{question}\n<bot>:', chatReply: ' {answer}</s>', chatStop: ['<human>', '!'] };
    const trained = new PromptTemplates('blip-2', config, names);
    expect(trained.turn(turns.slice(0, 1), '$& ?')).toBe(
      '<human>:Where is it?\n<bot>: singapore</s><human>:$& ?\n<bot>:',
    );
    expect(trained.answer('Why?')).toBe('<human>:Why?\n<bot>:');
    expect(trained.stop).toEqual(['<human>', '!']);
  });
});

describe('a chat', () => {
  let model: Model;
  beforeEach(async () => {
    model = await modelDouble({ chatTurns: 0 });
  });
  afterEach(() => model.dispose());

  it('remembers answered turns in order', async () => {
    const chat = model.chat();
    await chat.send('count 1');
    await chat.send('count 2');
    expect(chat.history).toEqual([
      { role: 'user', text: 'count 1' },
      { role: 'assistant', text: ' t0' },
      { role: 'user', text: 'count 2' },
      { role: 'assistant', text: ' t0 t1' },
    ]);
  });

  it('forgets a turn that failed or was left, and takes the next one', async () => {
    const chat = model.chat();
    await expect(chat.send('fail')).rejects.toThrow('the prompt is bad');
    for await (const _ of chat.send('wait')) break;
    await chat.send('count 1');
    expect(chat.history.map(({ text }) => text)).toEqual(['count 1', ' t0']);
  });

  it('refuses a message while the one before is being answered', async () => {
    const chat = model.chat();
    const first = chat.send('wait');
    expect(() => chat.send('count 1')).toThrow(/still being answered/);
    first.cancel();
    await first;
    expect((await chat.send('count 1')).tokenIds).toEqual([0]);
  });

  it('stays usable after a message with wrong options', async () => {
    const chat = model.chat();
    expect(() => chat.send('count 1', { maxNewTokens: -1 })).toThrow(/maxNewTokens/);
    expect(() => chat.send('count 1', null as never)).toThrow(/options must be an object/);
    expect(() => chat.send('')).toThrow(/the message is empty/);
    await chat.send('count 1');
    expect(chat.history).toHaveLength(2);
  });

  it('hands out a history that cannot be changed from outside', async () => {
    const chat = model.chat();
    await chat.send('count 1');
    chat.history.pop();
    chat.history[0]!.text = 'changed';
    expect(chat.history.map(({ text }) => text)).toEqual(['count 1', ' t0']);
  });

  it('goes on from a history', async () => {
    const history = [
      { role: 'user' as const, text: 'a' },
      { role: 'assistant' as const, text: 'b' },
    ];
    const chat = model.chat({ history });
    await chat.send('count 1');
    expect(chat.history.map(({ text }) => text)).toEqual(['a', 'b', 'count 1', ' t0']);
    expect(history).toHaveLength(2);
  });

  it('is plain data in JSON, with its system text', async () => {
    const chat = model.chat({ system: 'Be brief.' });
    expect(JSON.stringify(chat)).toBe('{"system":"Be brief.","history":[]}');
    expect(JSON.stringify(model.chat({}))).toBe('{"history":[]}');
  });

  it('is not changed by what happens in its fork', async () => {
    const chat = model.chat();
    await chat.send('count 1');
    const fork = chat.fork();
    await fork.send('count 2');
    expect(chat.history).toHaveLength(2);
    expect(fork.history).toHaveLength(4);
  });

  it.each([
    ['a string', 'array of messages'],
    [[{ role: 'user', text: 'a' }], 'got 1 messages'],
    [[1, 2], 'history\\[0\\].*object'],
    [[null, null], 'history\\[0\\].*object'],
    [
      [
        { role: 'assistant', text: 'a' },
        { role: 'user', text: 'b' },
      ],
      "history\\[0\\].role must be 'user'",
    ],
    [
      [
        { role: 'user', text: 'a' },
        { role: 'user', text: 'b' },
      ],
      "history\\[1\\].role must be 'assistant'",
    ],
    [
      [
        { role: 'user', text: '' },
        { role: 'assistant', text: '' },
      ],
      'history\\[0\\].text is empty',
    ],
    [
      [
        { role: 'user', text: 'a' },
        { role: 'assistant', text: 7 },
      ],
      'history\\[1\\].text must be a string',
    ],
    [
      [
        { role: 'user', text: 'a', name: 'x' },
        { role: 'assistant', text: 'b' },
      ],
      "unknown option 'name'",
    ],
  ])('refuses the history %j', (history, message) => {
    expect(() => model.chat({ history: history as never })).toThrow(new RegExp(message));
  });
});
