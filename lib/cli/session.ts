// A loaded model for the time of one command: progress bar while loading, interrupt signal, and disposal whatever happens.

import { loadModel, type LoadProgress, type Model } from '../index.js';
import { demoModel } from '../package-files.js';
import type { LoadOptions } from '../options.js';
import { loadOptions, type CommonFlags } from './flags.js';
import { bytes, interruptSignal } from './output.js';
import { progressBar } from './progress.js';

/** Loads the model that `flags` name, runs `use` with it and disposes it. */
export async function withModel(
  flags: CommonFlags,
  use: (model: Model, signal: AbortSignal, loadMs: number) => Promise<void>,
): Promise<void> {
  const signal = interruptSignal();
  const started = performance.now();
  const model = await loadWithProgress(flags.model ?? demoModel(), { ...loadOptions(flags), signal });
  try {
    // the folder's path is its name: there is only this one
    if (flags.adapter !== undefined) await model.adapters.load(flags.adapter, { name: flags.adapter });
    await use(model, signal, performance.now() - started);
  } finally {
    await model.dispose();
  }
}

async function loadWithProgress(dir: string, options: LoadOptions): Promise<Model> {
  const bar = await progressBar('loading');
  try {
    const onProgress = ({ loaded, total }: LoadProgress) => bar.update(loaded, total, `of ${bytes(total)}`);
    return await loadModel(dir, { ...options, onProgress });
  } finally {
    bar.stop();
  }
}
