// `qformer demo`: what the library does, in three lines of output and one of figures.

import { basename } from 'node:path';
import type { GenerationResult } from '../generation.js';
import { demoImage } from '../package-files.js';
import { print } from './ask.js';
import { generateOptions, type CommonFlags } from './flags.js';
import { duration } from './output.js';
import { withModel } from './session.js';

const question = '这是什么？';

/** Streams an English caption and a Chinese answer about `image`, then prints where the time went. */
export function demo(image: string = demoImage(), flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal, loadMs) => {
    const options = generateOptions(flags, signal);
    const write = (text: string) => void (flags.json || process.stdout.write(text));
    write(`${basename(image)}\n\ncaption  `);
    const caption = await print(model.caption(image, options), flags, { image });
    write(`${question}  `);
    const answer = await print(model.answer(image, question, options), flags, { image, question });
    write(`\n${figures(loadMs, [caption, answer])}\n`);
  });
}

function figures(loadMs: number, results: GenerationResult[]): string {
  const [first] = results;
  const sum = (pick: (result: GenerationResult) => number) =>
    results.reduce((total, result) => total + pick(result), 0);
  // The first token of an answer comes out of the prefill, so it is no work of the decode phase.
  const decoded = sum(({ usage }) => Math.max(usage.completionTokens - 1, 0));
  const decodeMs = sum(({ timings }) => timings.decodeMs);
  return [
    `load ${duration(loadMs)}`,
    `image ${duration(first!.timings.imageMs)}`,
    `first token ${duration(first!.timings.timeToFirstTokenMs)}`,
    `${sum(({ usage }) => usage.completionTokens)} tokens` +
      (decodeMs > 0 ? ` at ${Math.round((decoded / decodeMs) * 1000)} tokens/s` : ''),
    `total ${duration(sum(({ timings }) => timings.totalMs))}`,
  ].join(' · ');
}
