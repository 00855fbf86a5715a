// Runs a data set through a model and scores the answers: accuracy for questions, n-gram metrics for captions.

import { mapConcurrently } from '../concurrent.js';
import type { Model } from '../model.js';
import type { CaptionOptions } from '../options.js';
import { bleu4, ciderD } from './captions.js';
import type { EvalItem } from './dataset.js';
import type { EvalResult, ResultsFile } from './results.js';
import { vqaAccuracy } from './vqa.js';

/** Scores; shares are from 0 to 1, CIDEr-D as `ciderD` has it. */
export interface EvalReport {
  items: number;
  /** Items without a result: their images cannot be read, or their requests failed. */
  failed: number;
  /** VQA accuracy is that of the questions with enough references for it; absent where none has. */
  questions?: { items: number; exactMatch: number; vqaAccuracy?: number };
  captions?: { items: number; exactMatch: number; bleu4: number; ciderD: number };
}

/** What happens while an evaluation runs. */
export interface EvalEvents {
  /** After each item, those already there included. */
  onProgress(done: number, total: number): void;
  /** An item failed; the others go on. */
  onError(error: unknown): void;
}

/** Requests in flight at a time. */
const AHEAD = 32;
/** With fewer annotators no answer reaches an accuracy of 1: three others have to agree. */
const MIN_ANNOTATORS = 4;

/** Asks what `results` does not hold yet, and scores all of it. Rejects when the signal fires; `results` keeps what there is. */
export async function evaluate(
  model: Model,
  items: readonly EvalItem[],
  results: ResultsFile,
  { lang, ...options }: CaptionOptions,
  { onProgress, onError }: EvalEvents,
): Promise<EvalReport> {
  const keyOf = ({ line, name, question }: EvalItem) => ({
    line,
    image: name,
    ...(question !== undefined && { question }),
  });
  const missing = items.filter((item) => results.get(keyOf(item)) === undefined);
  let done = items.length - missing.length;
  onProgress(done, items.length);
  await mapConcurrently(missing, AHEAD, async (item) => {
    options.signal?.throwIfAborted();
    const { image, question } = item;
    try {
      const { text } = await (question === undefined
        ? model.caption(image, { ...options, lang })
        : model.answer(image, question, options));
      results.add({ ...keyOf(item), text });
    } catch (error) {
      options.signal?.throwIfAborted();
      onError(error);
    }
    onProgress(++done, items.length);
  });
  return scoreResults(items.map((item) => ({ item, result: results.get(keyOf(item)) })));
}

function scoreResults(all: readonly { item: EvalItem; result: EvalResult | undefined }[]): EvalReport {
  const answered = all.flatMap(({ item: { question, references }, result }) =>
    result === undefined ? [] : [{ question, references, text: result.text }],
  );
  const questions = answered.filter(({ question }) => question !== undefined);
  const annotated = questions.filter(({ references }) => references.length >= MIN_ANNOTATORS);
  const captions = answered.filter(({ question }) => question === undefined);
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const exactMatch = (cases: typeof answered): number =>
    mean(cases.map(({ text, references }) => Number(references.some((reference) => reference.trim() === text.trim()))));
  return {
    items: all.length,
    failed: all.length - answered.length,
    ...(questions.length > 0 && {
      questions: {
        items: questions.length,
        exactMatch: exactMatch(questions),
        ...(annotated.length > 0 && {
          vqaAccuracy: mean(annotated.map(({ text, references }) => vqaAccuracy(text, references))),
        }),
      },
    }),
    ...(captions.length > 0 && {
      captions: {
        items: captions.length,
        exactMatch: exactMatch(captions),
        bleu4: bleu4(captions),
        ciderD: ciderD(captions),
      },
    }),
  };
}
