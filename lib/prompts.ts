// Which words stand around a question. Defaults by architecture (reference processors and LAVIS prompts): InstructBLIP takes
// the question as it is, BLIP-2 wants "Question: … Answer:". A model folder may bring its own in an optional `qformer.json`,
// because a checkpoint knows its training prompts and its config.json has no place for them.

import { join } from 'node:path';
import { QFormerError } from './errors.js';
import { fileExists, isJsonObject, readJsonObject } from './io/files.js';
import { JsonFields } from './io/json-fields.js';

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
  if (!fileExists(file)) return {};
  const fields = new JsonFields(file, readJsonObject(file));
  const config: PromptConfig = {
    captionPrompt: readCaptionPrompt(fields),
    answerPrompt: fields.optionalString('answerPrompt'),
    chatTurns: fields.optionalInteger('chatTurns', { min: 0, max: 1000 }),
  };
  const { answerPrompt } = config;
  if (answerPrompt !== undefined && !answerPrompt.includes('{question}')) {
    throw fields.fault('answerPrompt', "must contain '{question}'", answerPrompt);
  }
  return config;
}

function readCaptionPrompt(fields: JsonFields): PromptConfig['captionPrompt'] {
  const value = fields.raw('captionPrompt');
  if (value === undefined || typeof value === 'string') return value;
  const isText = (text: unknown) => typeof text === 'string';
  if (isJsonObject(value) && Object.keys(value).length > 0 && Object.values(value).every(isText)) {
    return value as Record<string, string>;
  }
  throw fields.fault('captionPrompt', 'must be a string or an object of strings by language', value);
}
