// The package as a user imports it: dist/, where the engine's worker lies beside the entry.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type * as PublicApi from '../../lib/index.js';
import { packageRoot } from '../../lib/package-root.js';

/** The package's exports. */
export type Api = typeof PublicApi;
export type { GenerationResult, Model } from '../../lib/index.js';

/** The public API; throws an Error where dist/ is not built. */
export async function importPackage(): Promise<Api> {
  const entry = join(packageRoot(), 'dist', 'index.js');
  if (!existsSync(entry)) throw new Error("dist/index.js is not built: run 'npm run build:js'");
  return (await import(pathToFileURL(entry).href)) as Api;
}

/** The demonstration model and its sample images. */
export const DEMONSTRATION_MODEL = join(packageRoot(), 'models', 'emoji-vlm');
export const SAMPLES = join(packageRoot(), 'models', 'samples');

/** A checkpoint folder, the type its weights are used in, and the heading of its rows. */
export interface ModelChoice {
  dir: string;
  dtype: 'auto' | 'bf16';
  group: string;
}
