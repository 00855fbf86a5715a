// `qformer eval`: a data set through a model, with a progress bar, and a report. What is done stays in the results file, so that
// the same command goes on after an interrupt or a crash.

import { readDataset, type EvalItem } from '../eval/dataset.js';
import { evaluate, type EvalEvents, type EvalReport } from '../eval/evaluate.js';
import { ResultsFile } from '../eval/results.js';
import { evaluateRetrieval, type Recalls, type RetrievalReport } from '../eval/retrieval.js';
import { openCheckpoint } from '../io/checkpoint.js';
import { modelDigest } from '../io/model-digest.js';
import type { Model } from '../model.js';
import { generateOptions, type CommonFlags } from './flags.js';
import { fail } from './output.js';
import { progressBar } from './progress.js';
import { withModel } from './session.js';

/** Evaluates the data set in `file` and prints the report. */
export function evaluateFile(file: string, flags: CommonFlags): Promise<void> {
  const items = readDataset(file);
  return withModel(flags, async (model, signal) => {
    const bar = await progressBar('evaluating');
    const events: EvalEvents = {
      onProgress: (done, total) => bar.update(done, total, `of ${total} items`),
      onError: fail,
    };
    let report: EvalReport | RetrievalReport;
    try {
      report =
        model.info.purpose === 'retrieval'
          ? await evaluateRetrieval(model, items, { signal }, events)
          : await evaluateAnswers(model, items, flags.output ?? `${file}.results`, flags, signal, events);
    } finally {
      bar.stop();
    }
    const text = 'textToImage' in report ? describeRetrieval(report) : describe(report);
    process.stdout.write(flags.json ? `${JSON.stringify(report)}\n` : text);
  });
}

function evaluateAnswers(
  model: Model,
  items: readonly EvalItem[],
  output: string,
  flags: CommonFlags,
  signal: AbortSignal,
  events: EvalEvents,
): Promise<EvalReport> {
  const { dir } = model.info;
  const { signal: _, ...options } = { ...generateOptions(flags, signal), lang: flags.lang };
  const digest = modelDigest(dir, openCheckpoint(dir, flags).tensors);
  const made = { ...options, quantize: flags.quantize, quantizeActivations: flags.quantizeActivations };
  const results = ResultsFile.open(output, { format: 'qformer-eval', version: 1, model: digest, options: made });
  return evaluate(model, items, results, { ...options, signal }, events);
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

function describeRetrieval({ images, texts, failed, imageToText, textToImage }: RetrievalReport): string {
  const row = (recalls: Recalls) =>
    Object.entries(recalls)
      .map(([k, share]) => `R@${k} ${percent(share)}`)
      .join(', ');
  const head = `${images} images, ${texts} texts, ${failed} failed`;
  return `${head}\nimage to text: ${row(imageToText)}\ntext to image: ${row(textToImage)}\n`;
}

function describe({ items, failed, ...parts }: EvalReport): string {
  const { questions, captions } = parts;
  const lines = [`${items} items, ${failed} failed`];
  if (questions !== undefined) {
    const { items: count, exactMatch, vqaAccuracy } = questions;
    const vqa = vqaAccuracy === undefined ? '' : `, VQA accuracy ${percent(vqaAccuracy)}`;
    lines.push(`${count} questions: exact match ${percent(exactMatch)}${vqa}`);
  }
  if (captions !== undefined) {
    const { items: count, exactMatch, bleu4, ciderD } = captions;
    const metrics = `BLEU-4 ${percent(bleu4)}, CIDEr-D ${(100 * ciderD).toFixed(1)}`;
    lines.push(`${count} captions: exact match ${percent(exactMatch)}, ${metrics}`);
  }
  return `${lines.join('\n')}\n`;
}
