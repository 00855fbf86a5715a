// The examples of the README and of the pages in docs/ are run as they stand there, against the built package, and must print
// what stands below them. Commands run in the order of the page, which may use what earlier ones wrote.

import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import * as library from '../lib/index.js';
import { packageRoot } from '../lib/package-root.js';
import { qformer } from './support/cli-process.js';
import { codeBlocks, matches } from './support/markdown.js';

const pages = [
  'README.md',
  'docs/captioning.md',
  'docs/ranking.md',
  'docs/chat.md',
  'docs/checkpoints.md',
  'docs/retrieval.md',
  'docs/evaluation.md',
  'docs/quantization.md',
  'docs/adapters.md',
];
const blocks = pages.flatMap((page) => codeBlocks(page).map((block) => ({ ...block, page })));
const documents = [...pages, 'docs/architecture.md', 'CONTRIBUTING.md', 'CHANGELOG.md'];

function run(file: string): Promise<{ stdout: string; stderr: string; code: number }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [file], { cwd: packageRoot() }, (error, stdout, stderr) => {
      resolve({ stdout, stderr, code: error === null ? 0 : Number(error.code ?? 1) });
    });
  });
}

describe('an example of the library', () => {
  let dir: string;
  beforeAll(() => {
    // Inside the package, so that its own name resolves to it.
    mkdirSync(join(packageRoot(), 'build'), { recursive: true });
    dir = mkdtempSync(join(packageRoot(), 'build', 'readme-'));
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  const examples = blocks.filter(({ language }) => language === 'ts');

  it('exists for each entry of the package', () => {
    const code = examples.map((example) => example.code).join('\n');
    for (const entry of ["'qformer'", "'qformer/tensor'"]) expect(code).toContain(entry);
  });

  // A class shows by its methods, a function by its name. The language or the library itself calls the exceptions.
  it('stands in the README for each export of the library and each method of its classes', () => {
    const code = examples.flatMap((example) => (example.page === 'README.md' ? example.code : [])).join('\n');
    const implicit = ['constructor', 'then', 'toJSON', 'requestedBy'];
    const wanted = Object.entries(library).flatMap(([name, value]) => {
      const methods = Object.getOwnPropertyNames(value.prototype ?? {}).filter((method) => !implicit.includes(method));
      return methods.length === 0 ? [name] : methods.map((method) => `.${method}`);
    });
    expect(wanted.length).toBeGreaterThan(35);
    const shown = (name: string): boolean => new RegExp(`${name.startsWith('.') ? '\\' : '\\b'}${name}\\b`).test(code);
    expect(wanted.filter((name) => !shown(name))).toEqual([]);
  });

  it.each(examples)('at $page:$line prints what stands below it', async ({ code, page, line, output }) => {
    const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext };
    const file = join(dir, `${basename(page, '.md')}-${line}.mjs`);
    writeFileSync(file, ts.transpileModule(code, { compilerOptions }).outputText);
    const { stdout, stderr, code: exitCode } = await run(file);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(output, 'there is no expected output below it').toBeDefined();
    expect(matches(stdout, output!), stdout).toBe(true);
  });
});

describe('a command', () => {
  beforeAll(() => {
    for (const file of ['samples.index', 'samples.results'])
      rmSync(join(packageRoot(), 'build', file), { force: true });
  });

  const commands = blocks.filter(({ language }) => language === 'sh').flatMap(({ code }) => code.trim().split('\n'));
  const ours = commands.flatMap((command) => {
    const [, input, line] = /^(?:echo "(.*)" \| )?npx qformer (.*)$/.exec(command) ?? [];
    return line === undefined ? [] : [{ command, input, line }];
  });

  it.each(ours)('runs: $command', async ({ input, line }) => {
    const args = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, bare]) => quoted ?? bare!);
    const { stdout, stderr, code } = await qformer(args, { input });
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
    expect(stdout).not.toBe('');
  });

  it('of npm is a script of package.json', () => {
    const { scripts } = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { scripts: object };
    const text = documents.map((file) => readFileSync(join(packageRoot(), file), 'utf8')).join('\n');
    const named = [...text.matchAll(/npm run ([\w:-]+)/g)].map(([, name]) => name!);
    expect(named).toContain('demo');
    for (const name of named) expect(Object.keys(scripts)).toContain(name);
  });
});

describe('a document', () => {
  it.each(documents)('%s links only to files that exist', (document) => {
    const path = join(packageRoot(), document);
    const links = [...readFileSync(path, 'utf8').matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, target]) => target!);
    expect(links.filter((target) => !existsSync(join(dirname(path), target)))).toEqual([]);
  });
});
