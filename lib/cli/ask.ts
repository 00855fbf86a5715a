// `qformer caption`, `qformer answer` and `qformer rank`: one result per image, streamed as text or printed as JSON.

import type { Generation, GenerationResult } from '../generation.js';
import type { CaptionOptions, RankOptions } from '../options.js';
import { generateOptions, type CommonFlags } from './flags.js';
import { fail, oneLine, printJson } from './output.js';
import { withModel } from './session.js';

// Enough requests in flight to share steps and to decode images meanwhile, few enough to hold few decoded images.
const ahead = 8;

/** Captions every image in order; a failing one is reported and the others go on. */
export function caption(images: string[], flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal) => {
    const options: CaptionOptions = { ...generateOptions(flags, signal), lang: flags.lang, prompt: flags.prompt };
    const running: Generation[] = [];
    for (let i = 0; i < images.length && !signal.aborted; i++) {
      while (running.length < images.length && running.length < i + ahead) {
        running.push(model.caption(images[running.length]!, options));
      }
      const label = images.length > 1 ? `${images[i]}: ` : '';
      await print(running[i]!, flags, { image: images[i] }, label).catch(fail);
    }
    signal.throwIfAborted();
  });
}

/** Answers one question. */
export function answer(image: string, question: string, flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal) => {
    await print(model.answer(image, question, generateOptions(flags, signal)), flags, { image, question });
  });
}

/** Prints candidates by their likelihood: sum, mean and text of each. */
export function rank(image: string, question: string, candidates: string[], flags: CommonFlags): Promise<void> {
  return withModel(flags, async (model, signal) => {
    const { by, raw, adapter, json } = flags;
    const ranked = await model.rank(image, question, candidates, { by, raw, adapter, signal } as RankOptions);
    const lines = ranked.map(({ sum, mean, candidate }) => `${sum.toFixed(3)}  ${mean.toFixed(3)}  ${candidate}\n`);
    process.stdout.write(json ? `${JSON.stringify({ image, question, ranked })}\n` : lines.join(''));
  });
}

/** Streams a request to stdout after `label`, or prints it as JSON with the fields of `about`; several answers each on a line with its score. Returns the result. */
export async function print(
  generation: Generation,
  flags: CommonFlags,
  about: Record<string, unknown>,
  label = '',
): Promise<GenerationResult> {
  if (flags.json) {
    const result = await generation;
    printJson(about, result);
    return result;
  }
  if (flags.numReturnSequences !== undefined) {
    const result = await generation;
    for (const { text, score } of result.beams ?? [])
      process.stdout.write(`${label}${score.toFixed(3)}  ${oneLine(text)}\n`);
    return result;
  }
  let started = false;
  try {
    for await (const { text } of generation) {
      const visible = started ? text : text.trimStart();
      if (visible === '') continue;
      process.stdout.write(started ? visible : label + visible);
      started = true;
    }
  } finally {
    if (started) process.stdout.write('\n');
  }
  return generation;
}
