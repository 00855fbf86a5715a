// Where this package lies: the folder of its package.json, found upwards from this file.
//
// The same code runs from lib/ (tests), from dist/*.js and from dist/*.cjs, at different depths; prebuilt binaries, the
// worker script and the demonstration model are all found from the root.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

let root: string | undefined;

/** The package's root folder (absolute path). */
export function packageRoot(): string {
  return (root ??= findRoot(dirname(fileURLToPath(import.meta.url))));
}

function findRoot(folder: string): string {
  if (existsSync(join(folder, 'package.json'))) return folder;
  const parent = dirname(folder);
  if (parent === folder) throw new Error('qformer: package.json not found above the library');
  return findRoot(parent);
}
