// `qformer chat`: one message per line from the terminal or a pipe. Ctrl+C stops the answer being written, or ends the chat.

import { createInterface } from 'node:readline';
import { print } from './ask.js';
import { generateOptions, type CommonFlags } from './flags.js';
import { fail } from './output.js';
import { withModel } from './session.js';

/** Talks about `image` until an empty line, the end of input or an interrupt. */
export function chat(image: string, flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal) => {
    const conversation = model.chat({ images: [image], system: flags.system });
    const interactive = process.stdin.isTTY === true && !flags.json;
    const lines = createInterface({ input: process.stdin, terminal: false, signal });
    const prompt = () => interactive && process.stdout.write('> ');
    prompt();
    for await (const line of lines) {
      if (line.trim() === '') break;
      const generation = conversation.send(line, generateOptions(flags, signal));
      await print(generation, flags, { image, question: line }).catch(fail);
      if (signal.aborted) break;
      prompt();
    }
    lines.close();
    signal.throwIfAborted();
  });
}
