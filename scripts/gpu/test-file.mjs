// Runs one test file of the GPU bundle: `node gpu/test-file.mjs FILE`. Prints every failure and, last, one line of JSON with
// the counts. Exit code 1 when a test failed or none ran.
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { startTests } from '@vitest/runner';

const file = resolve(process.argv[2]);
const seed = 1;
const runner = {
  config: {
    root: process.cwd(),
    name: undefined,
    setupFiles: [],
    passWithNoTests: false,
    testNamePattern: process.argv[3] === undefined ? undefined : new RegExp(process.argv[3]),
    allowOnly: false,
    sequence: { shuffle: false, concurrent: false, seed, hooks: 'stack', setupFiles: 'list' },
    chaiConfig: undefined,
    maxConcurrency: 1,
    // A first launch on a new GPU may compile for it, and the emulated one is slow; the section has a limit of its own.
    testTimeout: 600_000,
    hookTimeout: 600_000,
    retry: 0,
    includeTaskLocation: false,
    diffOptions: undefined,
    tags: [],
    tagsFilter: undefined,
    strictTags: false,
  },
  pool: 'forks',
  importFile: (path) => import(pathToFileURL(path).href),
};

const counts = { passed: 0, failed: 0, skipped: 0 };

function count(task, path) {
  const name = [...path, task.name];
  const state = task.result?.state;
  if (task.type === 'suite') {
    for (const child of task.tasks) count(child, path.length === 0 && task.filepath ? [] : name);
    if (state === 'fail' && task.result.errors?.length) report(name, task.result.errors);
    if (state === 'fail' && task.tasks.length === 0) counts.failed++;
    return;
  }
  if (state === 'pass') counts.passed++;
  else if (state === 'fail') {
    counts.failed++;
    report(name, task.result.errors ?? []);
  } else counts.skipped++;
}

function report(name, errors) {
  console.log(`FAILED ${name.join(' > ')}`);
  for (const error of errors)
    console.log(`  ${(error.stack ?? error.message ?? String(error)).split('\n').slice(0, 12).join('\n  ')}`);
}

for (const task of await startTests([file], runner)) count(task, []);
console.log(JSON.stringify(counts));
process.exitCode = counts.failed > 0 || counts.passed === 0 ? 1 : 0;
