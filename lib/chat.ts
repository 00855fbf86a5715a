// A conversation about an image. Its earlier turns are repeated in every prompt (chat-template.ts says how), so a turn costs the
// prefill of its prefix unless the engine still has it cached. A turn enters the history only when it has been answered.

import type { ChatTurn } from './chat-template.js';
import { QFormerError, checkOptions, describe } from './errors.js';
import { checkText, type GenerateOptions } from './options.js';
import type { Generation } from './generation.js';
import type { PromptTemplates } from './prompts.js';

/** One line of a conversation. */
export interface ChatMessage {
  role: 'user' | 'assistant';
  text: string;
}

/** A conversation as plain data, without its image: options of `Model.chat` that continue it. */
export interface ChatRecord {
  system?: string;
  history: ChatMessage[];
}

/** Starts a request with a finished prompt. */
export type StartRequest = (prompt: string, options: GenerateOptions) => Generation;

/** A conversation; made by `Model.chat`. */
export class Chat {
  readonly #turns: ChatTurn[];
  readonly #start: StartRequest;
  readonly #templates: PromptTemplates;
  readonly #system: string;
  #busy = false;

  /** @internal `history` is checked: INVALID_ARGUMENT. */
  constructor(
    start: StartRequest,
    templates: PromptTemplates,
    { system = '', history = [] }: Partial<ChatRecord> = {},
  ) {
    this.#start = start;
    this.#templates = templates;
    this.#system = system;
    this.#turns = readHistory(history);
  }

  /** The answered turns so far, oldest first. */
  get history(): ChatMessage[] {
    return this.#turns.flatMap(({ question, answer }): ChatMessage[] => [
      { role: 'user', text: question },
      { role: 'assistant', text: answer },
    ]);
  }

  /** The conversation as `JSON.stringify` writes it; `model.chat({ images, ...record })` continues it. */
  toJSON(): ChatRecord {
    return { ...(this.#system !== '' && { system: this.#system }), history: this.history };
  }

  /** A second conversation with the same beginning; the two then go on without each other. */
  fork(): Chat {
    return new Chat(this.#start, this.#templates, this.toJSON());
  }

  /**
   * Asks `text` with the history before it; with `raw` the text is the whole prompt. A turn that fails or is cancelled
   * leaves no trace. Throws INVALID_ARGUMENT while the previous turn is still running: its answer belongs into the prompt.
   */
  send(text: string, options: GenerateOptions = {}): Generation {
    checkText('chat.send', 'the message', text);
    if (this.#busy) {
      throw new QFormerError(
        'INVALID_ARGUMENT',
        'chat.send: the previous message is still being answered; await it first',
      );
    }
    // `start` checks the options, so null may still come by here.
    const prompt = options?.raw ? text : this.#templates.turn(this.#turns, text, this.#system);
    const generation = this.#start(prompt, options);
    this.#busy = true;
    void this.#remember(text, generation);
    return generation;
  }

  async #remember(question: string, generation: Generation): Promise<void> {
    try {
      const { text: answer, finishReason } = await generation;
      if (finishReason !== 'abort') this.#turns.push({ question, answer });
    } catch {
      // The caller holds the same promise and sees the error there.
    } finally {
      this.#busy = false;
    }
  }
}

function readHistory(history: readonly ChatMessage[]): ChatTurn[] {
  if (!Array.isArray(history) || history.length % 2 !== 0) {
    const found = Array.isArray(history) ? `${history.length} messages` : describe(history);
    throw invalidHistory(`must be an array of messages, a user's and an assistant's in turn, got ${found}`);
  }
  const texts = history.map((message: unknown, i) => {
    checkOptions(`chat: history[${i}]`, message, ['role', 'text']);
    const { role, text } = message as ChatMessage;
    const expected = i % 2 === 0 ? 'user' : 'assistant';
    if (role !== expected) throw invalidHistory(`[${i}].role must be '${expected}', got ${describe(role)}`);
    checkText('chat', `history[${i}].text`, text, role === 'assistant');
    return text;
  });
  return Array.from({ length: texts.length / 2 }, (_, i) => ({ question: texts[2 * i]!, answer: texts[2 * i + 1]! }));
}

function invalidHistory(fault: string): QFormerError {
  return new QFormerError('INVALID_ARGUMENT', `chat: history${fault.startsWith('[') ? '' : ' '}${fault}`, {
    option: 'history',
  });
}
