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
});
