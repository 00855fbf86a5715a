// Files that ship with the package: its version, the demonstration model and the image of the demonstration.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from './package-root.js';

/** The version in package.json. */
export function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version: string };
  return manifest.version;
}

/** Folder of the demonstration model. */
export function demoModel(): string {
  return join(packageRoot(), 'models', 'emoji-vlm');
}

/** The image of the demonstration. */
export function demoImage(): string {
  return join(packageRoot(), 'models', 'samples', 'fox_noto.png');
}
