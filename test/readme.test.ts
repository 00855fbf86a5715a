// The README's examples are run as they stand there, against the built package, and must print what the README says.

import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../lib/package-root.js';
import { qformer } from './support/cli-process.js';
import { codeBlocks, matches } from './support/markdown.js';

const blocks = codeBlocks('README.md');
const documents = ['README.md', 'docs/architecture.md', 'CONTRIBUTING.md', 'CHANGELOG.md'];

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

  it.each(examples)('at line $line prints what the README says', async ({ code, line, output }) => {
    const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext };
    const file = join(dir, `line-${line}.mjs`);
    writeFileSync(file, ts.transpileModule(code, { compilerOptions }).outputText);
    const { stdout, stderr, code: exitCode } = await run(file);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(output, 'the README has no expected output for it').toBeDefined();
    expect(matches(stdout, output!), stdout).toBe(true);
  });
});

describe('a command of the README', () => {
  const commands = blocks.filter(({ language }) => language === 'sh').flatMap(({ code }) => code.trim().split('\n'));
  const ours = commands.filter((command) => command.startsWith('npx qformer '));

  it.each(ours)('runs: %s', async (command) => {
    const args = [...command.slice('npx qformer '.length).matchAll(/"([^"]*)"|(\S+)/g)].map(
      ([, quoted, bare]) => quoted ?? bare!,
    );
    const { stdout, stderr, code } = await qformer(args);
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
