// `qformer eval`: a data set through a model, with a progress bar, and a report. What is done stays in the results file, so that
// the same command goes on after an interrupt or a crash.

import { evaluate, type EvalReport } from '../eval/evaluate.js';
import { readDataset } from '../eval/dataset.js';
import { ResultsFile } from '../eval/results.js';
import { openCheckpoint } from '../io/checkpoint.js';
import { modelDigest } from '../io/model-digest.js';
import { generateOptions, type CommonFlags } from './flags.js';
import { fail } from './output.js';
import { progressBar } from './progress.js';
import { withModel } from './session.js';

/** Evaluates the data set in `file` and prints the report. */
export function evaluateFile(file: string, flags: CommonFlags): Promise<void> {
  const items = readDataset(file);
  return withModel(flags, async (model, signal) => {
    const { dir } = model.info;
    const { signal: _, ...options } = { ...generateOptions(flags, signal), lang: flags.lang };
    const made = { model: modelDigest(dir, openCheckpoint(dir).tensors), options };
    const results = ResultsFile.open(flags.output ?? `${file}.results`, {
      format: 'qformer-eval',
      version: 1,
      ...made,
    });
    const bar = await progressBar('evaluating');
    let report: EvalReport;
    try {
      report = await evaluate(
        model,
        items,
        results,
        { ...options, signal },
        {
          onProgress: (done, total) => bar.update(done, total, `of ${total} items`),
          onError: fail,
        },
      );
    } finally {
      bar.stop();
    }
    process.stdout.write(flags.json ? `${JSON.stringify(report)}\n` : describe(report));
  });
}

function describe({ items, failed, ...parts }: EvalReport): string {
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
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
