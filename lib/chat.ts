// A conversation about an image. BLIP-2 models have no chat format of their own: earlier turns are repeated in the prompt
// as "Question: … Answer: …." lines (LAVIS, BLIP-2 paper section 4.1), so a turn costs the prefill of its prefix unless the
// engine still has it cached. A turn enters the history only when it has been answered.

import { QFormerError } from './errors.js';
import { checkText, type GenerateOptions } from './options.js';
import type { Generation } from './generation.js';
import type { PromptTemplates } from './prompts.js';

/** One line of a conversation. */
export interface ChatMessage {
  role: 'user' | 'assistant';
  text: string;
}

/** Starts a request with a finished prompt. */
export type StartRequest = (prompt: string, options: GenerateOptions) => Generation;

/** A conversation; made by `Model.chat`. */
export class Chat {
  readonly #turns: { question: string; answer: string }[] = [];
  readonly #start: StartRequest;
  readonly #templates: PromptTemplates;
  readonly #system: string;
  #busy = false;

  constructor(start: StartRequest, templates: PromptTemplates, system = '') {
    this.#start = start;
    this.#templates = templates;
    this.#system = system;
  }

  /** The answered turns so far, oldest first. */
  get history(): ChatMessage[] {
    return this.#turns.flatMap(({ question, answer }): ChatMessage[] => [
      { role: 'user', text: question },
      { role: 'assistant', text: answer },
    ]);
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
