// Which words stand around a question. Defaults by architecture (reference processors and LAVIS prompts): InstructBLIP takes
// the question as it is, BLIP-2 wants "Question: … Answer:", Ziya-Visual a dialogue (chat-template.ts). A model folder may bring its own in an optional `qformer.json`,
// because a checkpoint knows its training prompts and its config.json has no place for them.

import { join } from 'node:path';
import { captionDefaults, type CaptionDefaults } from './caption-defaults.js';
import { customTemplate, namedSides, questionAnswer, type ChatTemplate, type ChatTurn } from './chat-template.js';
import { MAX_BEAMS, MAX_LENGTH_PENALTY } from './engine/params.js';
import { QFormerError } from './errors.js';
import type { ChatNames } from './io/config.js';
import { fileExists, isJsonObject, readJsonObject } from './io/files.js';
import { JsonFields } from './io/json-fields.js';

/** The content of a model folder's `qformer.json`; every key is optional. */
export interface PromptConfig {
  /** Caption prompt by language; the first one is the default. A string stands for `{ en: string }`. */
  captionPrompt?: string | Record<string, string>;
  /** The prompt of a question; `{question}` is replaced by it. */
  answerPrompt?: string;
  /** A question of a chat that has earlier turns, up to where the model answers; `{question}` is replaced. */
  chatTurn?: string;
  /** An earlier answer of a chat, behind its question; `{answer}` is replaced. */
  chatReply?: string;
  /** Strings that end an answer, because the model goes on with the other side's turn. */
  chatStop?: string[];
  /** How many earlier turns of a chat are repeated in the prompt. 0 for a model that answers single questions. */
  chatTurns?: number;
  /** How captions are decoded, in place of the defaults of the architecture. */
  captionOptions?: CaptionDefaults;
}

/** How the reference asks BLIP-2 over Flan-T5 a single question. */
const SHORT_ANSWER = 'Question: {question} Short answer:';

/** The prompts of one model. */
export class PromptTemplates {
  /** Strings that end an answer made with a template. */
  readonly stop: readonly string[];
  /** How captions are decoded. */
  readonly captionOptions: CaptionDefaults;
  readonly #captions: Map<string, string>;
  readonly #answer: string | undefined;
  readonly #chat: ChatTemplate;
  readonly #chatTurns: number;

  /** `chatNames`: see ModelConfig; `languageModel`: the model_type of the language model. */
  constructor(modelType: string, config: PromptConfig = {}, chatNames?: ChatNames, languageModel?: string) {
    const caption = config.captionPrompt ?? captionPrompts(modelType, chatNames);
    this.#captions = new Map(Object.entries(typeof caption === 'string' ? { en: caption } : caption));
    // Without a prompt for single questions, one is the first turn of a chat.
    const hasTurns = modelType === 'blip-2' || chatNames !== undefined || config.chatTurn !== undefined;
    const asked = modelType === 'blip-2' && languageModel === 't5' ? SHORT_ANSWER : undefined;
    this.#answer = config.answerPrompt ?? asked ?? (hasTurns ? undefined : '{question}');
    const base = chatNames === undefined ? questionAnswer : namedSides(chatNames);
    const { chatTurn: turn, chatReply: reply, chatStop: stop } = config;
    this.#chat = customTemplate(base, { turn, reply, stop });
    this.#chatTurns = config.chatTurns ?? Number.POSITIVE_INFINITY;
    this.stop = this.#chat.stop;
    this.captionOptions = config.captionOptions ?? captionDefaults(modelType, chatNames);
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
    return this.turn([], question);
  }

  /** The prompt of a chat turn: the system text, the last turns, the question. */
  turn(turns: readonly ChatTurn[], question: string, system = ''): string {
    const recent = this.#chatTurns === 0 ? [] : turns.slice(-Math.min(this.#chatTurns, turns.length));
    const earlier = recent.map((turn) => this.#chat.turn(turn.question) + this.#chat.reply(turn.answer));
    const asked =
      recent.length === 0 && this.#answer !== undefined
        ? // A function, because replacement strings give `$&` in a question a meaning.
          this.#answer.replace('{question}', () => question)
        : this.#chat.turn(question);
    return this.#chat.system(system) + earlier.join('') + asked;
  }
}

function captionPrompts(modelType: string, chatNames: ChatNames | undefined): string | Record<string, string> {
  if (chatNames !== undefined) {
    const { system, turn } = namedSides(chatNames);
    return { zh: system('') + turn('请描述这张图片。'), en: system('') + turn('Describe this image.') };
  }
  return modelType === 'blip-2' ? '' : 'A short image caption.';
}

/** Reads `qformer.json` of a model folder; a folder without one has an empty config. Throws FORMAT naming file and key. */
export function readPromptConfig(dir: string): PromptConfig {
  const file = join(dir, 'qformer.json');
  if (!fileExists(file)) return {};
  const fields = new JsonFields(file, readJsonObject(file));
  return {
    captionPrompt: readCaptionPrompt(fields),
    answerPrompt: placeholder(fields, 'answerPrompt', '{question}'),
    chatTurn: placeholder(fields, 'chatTurn', '{question}'),
    chatReply: placeholder(fields, 'chatReply', '{answer}'),
    chatStop: fields.optionalList('chatStop', 'non-empty strings', isNonEmpty),
    chatTurns: fields.optionalInteger('chatTurns', { min: 0, max: 1000 }),
    captionOptions: readCaptionOptions(fields),
  };
}

const CAPTION_OPTIONS = {
  maxNewTokens: { min: 1, max: 2 ** 31 - 1 },
  minNewTokens: { min: 0, max: 2 ** 31 - 1 },
  numBeams: { min: 1, max: MAX_BEAMS },
  noRepeatNgramSize: { min: 0, max: 2 ** 31 - 1 },
} as const;

function readCaptionOptions(fields: JsonFields): CaptionDefaults | undefined {
  const inner = fields.optionalObject('captionOptions');
  if (inner === undefined) return undefined;
  const options: CaptionDefaults = {
    lengthPenalty: inner.optionalNumber('lengthPenalty', { min: -MAX_LENGTH_PENALTY, max: MAX_LENGTH_PENALTY }),
    repetitionPenalty: inner.optionalNumber('repetitionPenalty', { min: 0.01, max: 100 }),
    penalizePrompt: inner.optionalBoolean('penalizePrompt'),
  };
  for (const [name, bounds] of Object.entries(CAPTION_OPTIONS)) {
    options[name as keyof typeof CAPTION_OPTIONS] = inner.optionalInteger(name, bounds);
  }
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

const isNonEmpty = (value: unknown): value is string => typeof value === 'string' && value !== '';

/** The text under `key`, which must hold `mark`. */
function placeholder(fields: JsonFields, key: string, mark: string): string | undefined {
  const text = fields.optionalString(key);
  if (text === undefined || text.includes(mark)) return text;
  throw fields.fault(key, `must contain '${mark}'`, text);
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
