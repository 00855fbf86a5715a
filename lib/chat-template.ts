// How a conversation is written down for a model. BLIP-2 models know no chat format: earlier turns are repeated as
// "Question: … Answer: …." (LAVIS; BLIP-2 paper, section 4.1). Ziya-Visual was trained on dialogues with named sides. A model
// folder may bring a format of its own in `qformer.json`.

import type { ChatNames } from './io/config.js';

/** An answered question. */
export interface ChatTurn {
  question: string;
  answer: string;
}

/** The pieces of a chat prompt, which is `system`, `turn` + `reply` of every earlier turn, and `turn` of the question. */
export interface ChatTemplate {
  /** What stands in front of the first turn; `text` may be empty. */
  system(text: string): string;
  /** A question, up to where the model begins to answer. */
  turn(question: string): string;
  /** A given answer, up to where the next question begins. */
  reply(answer: string): string;
  /** Where these appear in an answer, the model has begun to write the other side's turn. */
  stop: readonly string[];
}

/** The format of the BLIP-2 paper. */
export const questionAnswer: ChatTemplate = {
  system: (text) => (text === '' ? '' : `${text} `),
  turn: (question) => `Question: ${question} Answer:`,
  reply: (answer) => ` ${endSentence(answer)} `,
  stop: [],
};

/**
 * Ziya-Visual's: `<human>: {question}⏎<bot>: {answer}⏎` after the prefix of its configuration. It stops at the name alone,
 * because its tokenizer writes a space between the name and the colon when it decodes.
 */
export function namedSides({ human, assistant, prefix }: ChatNames): ChatTemplate {
  return {
    system: (text) => prefix + (text === '' ? '' : `${text}\n`),
    turn: (question) => `${human}: ${question}\n${assistant}:`,
    reply: (answer) => ` ${answer.trim()}\n`,
    stop: [human],
  };
}

/** `base` with the pieces that a model folder replaces; `{question}` and `{answer}` stand for the texts. */
export function customTemplate(
  base: ChatTemplate,
  pieces: { turn?: string | undefined; reply?: string | undefined; stop?: string[] | undefined },
): ChatTemplate {
  const { turn, reply, stop } = pieces;
  // Functions, because replacement strings give `$&` in a text a meaning.
  return {
    system: base.system,
    turn: turn === undefined ? base.turn : (question) => turn.replace('{question}', () => question),
    reply: reply === undefined ? base.reply : (answer) => reply.replace('{answer}', () => answer.trim()),
    stop: stop ?? base.stop,
  };
}

function endSentence(text: string): string {
  const trimmed = text.trim();
  return /[.!?。！？]$/u.test(trimmed) ? trimmed : `${trimmed}.`;
}
