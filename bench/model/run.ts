// The model part: the demonstration model (or --model) and, unless it is a smoke run, a synthetic one of real widths.

import { existsSync } from 'node:fs';
import { basename } from 'node:path';
import type { Options } from '../options.js';
import type { Row } from '../row.js';
import { runGeneration } from './generation.js';
import { DEMONSTRATION_MODEL } from './package.js';
import { runStages } from './stages.js';
import { writeSyntheticModel } from './synthetic.js';

const SYNTHETIC = ['synthetic', 'synthetic bf16'];

/**
 * Measures one model; a failure is a row with its reason. `which`: a checkpoint folder, or 'synthetic' with weights as stored
 * (f32 arithmetic) or in 'bf16' (bf16 arithmetic).
 */
export async function runModel(
  which: string,
  options: Options,
  threads: number,
  send: (row: Row) => void,
): Promise<void> {
  const synthetic = which.startsWith('synthetic') ? writeSyntheticModel(DEMONSTRATION_MODEL) : undefined;
  const dtype = which === 'synthetic bf16' ? 'bf16' : 'auto';
  const dir = synthetic?.dir ?? which;
  const group = `model ${basename(which)}`;
  try {
    // first, because the peak RSS that it reports is the process's
    for (const part of [runGeneration, runStages]) {
      await part({ dir, dtype, group }, options, threads, send).catch((error: unknown) => {
        const reason = error instanceof Error ? error.message : String(error);
        send({ group, name: part === runStages ? 'stages' : 'through the package', threads, error: reason });
      });
    }
  } finally {
    synthetic?.remove();
  }
}

/** The models that `options` ask for. */
export function chosenModels(options: Options): string[] {
  if (options.model !== undefined) return [options.model];
  if (!existsSync(DEMONSTRATION_MODEL)) return options.smoke ? [] : [...SYNTHETIC];
  return options.smoke ? [DEMONSTRATION_MODEL] : [DEMONSTRATION_MODEL, ...SYNTHETIC];
}
