// A loaded model for the time of one command: progress bar while loading, interrupt signal, and disposal whatever happens.

import { loadModel, type LoadProgress, type Model } from '../index.js';
import { demoModel } from '../package-files.js';
import type { LoadOptions } from '../options.js';
import { loadOptions, type CommonFlags } from './flags.js';
import { bytes, interruptSignal } from './output.js';

/** Loads the model that `flags` name, runs `use` with it and disposes it. */
export async function withModel(
  flags: CommonFlags,
  use: (model: Model, signal: AbortSignal, loadMs: number) => Promise<void>,
): Promise<void> {
  const signal = interruptSignal();
  const started = performance.now();
  const model = await loadWithProgress(flags.model ?? demoModel(), { ...loadOptions(flags), signal });
  try {
    await use(model, signal, performance.now() - started);
  } finally {
    await model.dispose();
  }
}

async function loadWithProgress(dir: string, options: LoadOptions): Promise<Model> {
  if (!process.stderr.isTTY) return loadModel(dir, options);
  const bar = await progressBar();
  try {
    return await loadModel(dir, { ...options, onProgress: bar.update });
  } finally {
    bar.stop();
  }
}

async function progressBar() {
  const { default: progress } = await import('cli-progress');
  const bar = new progress.SingleBar({
    format: 'loading {bar} {percentage} % of {size}',
    clearOnComplete: true,
    hideCursor: true,
    stopOnComplete: false,
    stream: process.stderr,
  });
  bar.start(1, 0, { size: '…' });
  return {
    update: ({ loaded, total }: LoadProgress) => {
      bar.setTotal(Math.max(total, 1));
      bar.update(loaded, { size: bytes(total) });
    },
    stop: () => bar.stop(),
  };
}
