// Which words stand around a question. Defaults by architecture (reference processors and LAVIS prompts): InstructBLIP takes
// the question as it is, BLIP-2 wants "Question: … Answer:". A model folder may bring its own in an optional `qformer.json`,
// because a checkpoint knows its training prompts and its config.json has no place for them.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, QFormerError } from './errors.js';

/** The content of a model folder's `qformer.json`; every key is optional. */
export interface PromptConfig {
  /** Caption prompt by language; the first one is the default. A string stands for `{ en: string }`. */
  captionPrompt?: string | Record<string, string>;
  /** The prompt of a question; `{question}` is replaced by it. */
  answerPrompt?: string;
  /** How many earlier turns of a chat are repeated in the prompt. 0 for a model that answers single questions. */
  chatTurns?: number;
}

/** The prompts of one model. */
export class PromptTemplates {
  readonly #captions: Map<string, string>;
  readonly #answer: string;
  readonly #chatTurns: number;

  constructor(modelType: string, config: PromptConfig = {}) {
    const defaults = modelType === 'blip-2' ? blip2Prompts : plainPrompts;
    const caption = config.captionPrompt ?? defaults.captionPrompt;
    this.#captions = new Map(Object.entries(typeof caption === 'string' ? { en: caption } : caption));
    this.#answer = config.answerPrompt ?? defaults.answerPrompt;
    this.#chatTurns = config.chatTurns ?? Number.POSITIVE_INFINITY;
  }

  /** The languages that `caption` has a prompt for; the first is the default. */
  get languages(): string[] {
    return [...this.#captions.keys()];
  }

  /** The caption prompt in `lang`. Throws INVALID_ARGUMENT where the model has none in that language. */
  caption(lang = this.languages[0]!): string {
    const prompt = this.#captions.get(lang);
    if (prompt !== undefined) return prompt;
    const message = `caption: this model has no caption prompt in '${lang}' (known: ${this.languages.join(', ')})`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option: 'lang', value: lang, allowed: this.languages });
  }

  /** The prompt of a single question. */
  answer(question: string): string {
    // A function, because replacement strings give `$&` in a question a meaning.
    return this.#answer.replace('{question}', () => question);
  }

  /** The prompt of a chat turn: the system text, the last turns, the question. */
  turn(turns: readonly { question: string; answer: string }[], question: string, system = ''): string {
    const recent = this.#chatTurns === 0 ? [] : turns.slice(-Math.min(this.#chatTurns, turns.length));
    const asked = recent.length === 0 ? this.answer(question) : `Question: ${question} Answer:`;
    const lines = recent.map((turn) => `Question: ${turn.question} Answer: ${endSentence(turn.answer)}`);
    return [system, ...lines, asked].filter((line) => line !== '').join(' ');
  }
}

const plainPrompts = { captionPrompt: 'A short image caption.', answerPrompt: '{question}' };
const blip2Prompts = { captionPrompt: '', answerPrompt: 'Question: {question} Answer:' };

function endSentence(text: string): string {
  const trimmed = text.trim();
  return /[.!?。！？]$/u.test(trimmed) ? trimmed : `${trimmed}.`;
}

/** Reads `qformer.json` of a model folder; a folder without one has an empty config. Throws FORMAT naming file and key. */
export function readPromptConfig(dir: string): PromptConfig {
  const file = join(dir, 'qformer.json');
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return {};
    throw new QFormerError('IO', `${file}: cannot be read: ${(cause as Error).message}`, { file }, { cause });
  }
  return checkPromptConfig(file, parseJson(file, text));
}

function parseJson(file: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new QFormerError('FORMAT', `${file}: not valid JSON: ${(cause as Error).message}`, { file }, { cause });
  }
}

function checkPromptConfig(file: string, config: unknown): PromptConfig {
  const fail = (key: string, expected: string, value: unknown): never => {
    throw new QFormerError('FORMAT', `${file}: ${key} must be ${expected}, got ${describe(value)}`, { file, key });
  };
  if (!isPlainObject(config)) return fail('the file', 'a JSON object', config);
  const { captionPrompt, answerPrompt, chatTurns } = config;
  if (captionPrompt !== undefined && typeof captionPrompt !== 'string') {
    const texts = isPlainObject(captionPrompt) ? Object.values(captionPrompt) : [];
    if (texts.length === 0 || !texts.every((text) => typeof text === 'string')) {
      fail('captionPrompt', 'a string or an object of strings by language', captionPrompt);
    }
  }
  if (answerPrompt !== undefined && !(typeof answerPrompt === 'string' && answerPrompt.includes('{question}'))) {
    fail('answerPrompt', "a string that contains '{question}'", answerPrompt);
  }
  if (chatTurns !== undefined && !(Number.isSafeInteger(chatTurns) && Number(chatTurns) >= 0)) {
    fail('chatTurns', 'an integer of at least 0', chatTurns);
  }
  return config as PromptConfig;
}

const isPlainObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
