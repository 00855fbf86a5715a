#!/usr/bin/env node
// Entry of the `qformer` command. `--version` is answered here, where nothing of the package and no stream of Node's is loaded
// yet; the rest is up to the commands.

import { writeSync } from 'node:fs';

/** The version in package.json; the build puts it in (tsup.config.ts). */
declare const PACKAGE_VERSION: string;

if (['--version', '-v'].includes(process.argv[2]!)) printVersion();
else void import('./commands.js').then(({ run }) => run(process.argv, PACKAGE_VERSION));

function printVersion(): void {
  try {
    writeSync(1, `${PACKAGE_VERSION}\n`);
  } catch (error) {
    // nobody reads it any more
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
  }
}
