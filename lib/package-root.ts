// Where this package lies, found from the running file upwards, so that it is the same from lib/ and from dist/.

import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { QFormerError } from './errors.js';

/** The folder of this package's package.json. */
export function packageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url));
  for (let dir = start; ; dir = dirname(dir)) {
    if (existsSync(join(dir, 'package.json'))) return dir;
    if (dir === dirname(dir)) throw new QFormerError('INTERNAL', `no package.json above ${start}`);
  }
}

/** The version in package.json. */
export function packageVersion(): string {
  return String(JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')).version);
}

/** The demonstration model that ships with the package. */
export function demoModel(): string {
  return join(packageRoot(), 'models', 'emoji-vlm');
}

/** The image of the demonstration. */
export function demoImage(): string {
  return join(packageRoot(), 'models', 'samples', 'fox_noto.png');
}
