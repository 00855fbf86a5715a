// The command line as its users run it: exit codes, what is on which stream, interrupts, and the demonstration model's answers.

import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';
import { describe, expect, it } from 'vitest';
import { bytes } from '../lib/cli/output.js';
import { estimateMemory } from '../lib/index.js';
import { packageRoot } from '../lib/package-root.js';
import { qformer } from './support/cli-process.js';
import { fixturePath } from './support/fixtures.js';

const samples = join('models', 'samples');
const fox = join(samples, 'fox_noto.png');
const panda = join(samples, 'panda_fluent.png');
const lines = (text: string) => text.trim().split('\n');
const parse = (line: string) => JSON.parse(line) as Record<string, unknown>;

/** Files that the command has loaded when it ends, relative to the package folder. */
function loadedFiles(...args: string[]): string[] {
  const cli = join(packageRoot(), 'dist', 'cli.cjs');
  const code = `process.on('exit', () => console.error(JSON.stringify(Object.keys(require.cache)))); require(process.argv[1])`;
  const { stderr } = spawnSync(process.execPath, ['--eval', code, cli, ...args], { encoding: 'utf8' });
  return (JSON.parse(stderr) as string[]).map((file) => relative(packageRoot(), file));
}

describe('qformer', () => {
  it('loads nearly nothing for --version', () => {
    const files = loadedFiles('--version');
    expect(files).toContain(join('dist', 'cli.cjs'));
    const size = files.reduce((sum, file) => sum + statSync(join(packageRoot(), file)).size, 0);
    expect(size).toBeLessThan(2000);
  });

  it('loads nothing but the argument parser before it knows the command', () => {
    const packages = loadedFiles('--help').flatMap((file) => /node_modules.([\w-]+)/.exec(file)?.[1] ?? []);
    expect([...new Set(packages)]).toEqual(['commander']);
  });

  it('prints its version and its help on stdout', async () => {
    const { version } = parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8'));
    for (const args of [['--version'], ['-v'], ['caption', '--version']]) {
      expect(await qformer(args)).toMatchObject({ stdout: `${String(version)}\n`, stderr: '', code: 0 });
    }
    for (const args of [['--help'], []]) {
      const { stdout, stderr, code } = await qformer(args);
      expect(stdout).toMatch(/Usage: qformer[^]*demo[^]*caption[^]*answer[^]*chat[^]*doctor[^]*info/);
      expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
    }
  });

  it('ends quietly when nobody reads its version', async () => {
    const { stderr, code } = await qformer(['--version'], { during: (child) => child.stdout!.destroy() });
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
  });

  it.each([
    [['captoin', 'a.png'], /unknown command 'captoin'.*Did you mean caption/],
    [['caption'], /missing required argument 'image'/],
    [['answer', 'a.png'], /missing required argument 'question'/],
    [['caption', 'a.png', '--modle', 'x'], /unknown option '--modle'.*Did you mean --model/],
    [['caption', 'a.png', '--seed', 'abc'], /'abc' is not a number/],
    [['caption', 'a.png', '--temperature', ''], /is not a number/],
    [['info', 'a', 'b'], /too many arguments/],
  ])('answers wrong usage %j with one line on stderr and exit code 2', async (args, message) => {
    const { stdout, stderr, code } = await qformer(args);
    expect(lines(stderr)).toEqual([expect.stringMatching(/^error INVALID_ARGUMENT: /)]);
    expect(stderr).toMatch(message);
    expect({ stdout, code }).toEqual({ stdout: '', code: 2 });
  });

  it.each([
    [['info', 'no-such-folder'], 'IO', /no-such-folder/],
    [['info', 'package.json'], 'IO', /package\.json/],
    [['info', '--adapter', 'no-such-folder'], 'IO', /no-such-folder/],
    [['caption', fox, '--model', 'no-such-folder'], 'IO', /no-such-folder/],
    [['caption', 'no-such-file.png'], 'IO', /no-such-file\.png/],
    [['caption', 'package.json'], 'FORMAT', /./],
    [['caption', fox, '--device', 'gpu'], 'INVALID_ARGUMENT', /'device'.*'gpu'/],
    [['caption', fox, '--dtype', 'int3'], 'INVALID_ARGUMENT', /'dtype'/],
    [['caption', fox, '--max-new-tokens', '-5'], 'INVALID_ARGUMENT', /maxNewTokens.*-5/],
    [['caption', fox, '--lang', 'xx'], 'INVALID_ARGUMENT', /en, zh/],
    [['answer', fox, ''], 'INVALID_ARGUMENT', /empty/],
  ])('reports %j as %s in one line with exit code 1', async (args, error, message) => {
    const { stdout, stderr, code } = await qformer(args);
    expect(lines(stderr)).toEqual([expect.stringMatching(new RegExp(`^error ${error}: `))]);
    expect(stderr).toMatch(message);
    expect({ stdout, code }).toEqual({ stdout: '', code: 1 });
  });
});

describe('qformer rank', () => {
  const args = ['rank', fox, 'What is this?', 'This is a cat.', 'This is a fox.'];

  it('prints sum, mean and text of each candidate, most likely first', async () => {
    const { stdout, stderr, code } = await qformer(args);
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
    expect(stdout).toMatch(/^-[\d.]+ {2}-[\d.]+ {2}This is a fox\.\n-[\d.]+ {2}-[\d.]+ {2}This is a cat\.\n$/);
  });

  it('prints one JSON object with --json', async () => {
    const { stdout } = await qformer([...args, '--by', 'mean', '--json']);
    const { ranked } = JSON.parse(stdout) as { ranked: { candidate: string; index: number }[] };
    expect(ranked.map(({ candidate, index }) => [candidate, index])).toEqual([
      ['This is a fox.', 1],
      ['This is a cat.', 0],
    ]);
  });

  it('reports a wrong order as INVALID_ARGUMENT', async () => {
    const { stderr, code } = await qformer([...args, '--by', 'max']);
    expect(stderr).toMatch(/^error INVALID_ARGUMENT: rank: option 'by' must be sum or mean/);
    expect(code).toBe(1);
  });
});

describe('qformer caption', () => {
  it('prints the caption and nothing else', async () => {
    expect(await qformer(['caption', fox])).toEqual({
      stdout: 'A fox on a blue background.\n',
      stderr: '',
      code: 0,
      signal: null,
    });
  });

  it('prints the best answers of a beam search with their scores, or as JSON', async () => {
    const flags = ['caption', fox, '--num-beams', '4', '--length-penalty', '0', '--num-return-sequences', '2'];
    const { stdout } = await qformer(flags);
    expect(stdout).toMatch(/^-0\.\d{3} {2}A fox on a blue background\.\n-\d\.\d{3} {2}A .+\n$/);
    const json = JSON.parse((await qformer([...flags, '--json'])).stdout) as {
      text: string;
      beams: { text: string }[];
    };
    expect(json.beams.map(({ text }) => text)[0]).toBe(json.text);
    expect(json.beams).toHaveLength(2);
  });

  it('captions in the language that is asked for, or with another prompt', async () => {
    expect((await qformer(['caption', fox, '--lang', 'zh'])).stdout).toBe('蓝色背景上的一只狐狸。\n');
    expect((await qformer(['caption', fox, '--prompt', 'What is this?'])).stdout).toBe('This is a fox.\n');
  });

  it('prints several images in the order of the arguments, each after its name', async () => {
    const { stdout, code } = await qformer(['caption', panda, fox]);
    expect(lines(stdout)).toEqual([`${panda}: A panda on a white background.`, `${fox}: A fox on a blue background.`]);
    expect(code).toBe(0);
  });

  it('goes on after an image that fails and exits with 1', async () => {
    const { stdout, stderr, code } = await qformer(['caption', panda, 'missing.png', fox]);
    expect(lines(stdout)).toHaveLength(2);
    expect(stderr).toMatch(/^error IO: .*missing\.png.*\n$/);
    expect(code).toBe(1);
  });

  it('prints one JSON object per image with --json', async () => {
    const { stdout, stderr } = await qformer(['caption', fox, panda, '--json']);
    const results = lines(stdout).map(parse);
    expect(results.map(({ image, text }) => [image, text])).toEqual([
      [fox, 'A fox on a blue background.'],
      [panda, 'A panda on a white background.'],
    ]);
    for (const { finishReason, usage, timings, tokenIds } of results) {
      const { completionTokens, imageTokens, promptTokens } = usage as Record<string, number>;
      expect(finishReason).toBe('stop');
      expect(imageTokens).toBe(16);
      expect(promptTokens).toBeGreaterThan(16);
      expect(tokenIds).toHaveLength(completionTokens!);
      expect((timings as Record<string, number>).totalMs).toBeGreaterThan(0);
    }
    expect(stderr).toBe('');
  });

  it('ends quietly when the reader of its output goes away', async () => {
    const { stderr, code } = await qformer(['caption', fox, panda, fox, panda], {
      during: (child) => child.stdout!.destroy(),
    });
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
  });
});

describe('qformer answer', () => {
  it('answers in the language of the question', async () => {
    expect((await qformer(['answer', fox, 'What is this?'])).stdout).toBe('This is a fox.\n');
    expect((await qformer(['answer', fox, '这是什么？'])).stdout).toBe('这是一只狐狸。\n');
  });

  it('stops at --max-new-tokens', async () => {
    const { stdout } = await qformer(['answer', fox, 'What is this?', '--max-new-tokens', '2', '--json']);
    expect(parse(stdout)).toMatchObject({
      question: 'What is this?',
      finishReason: 'length',
      usage: { completionTokens: 2 },
    });
  });

  it('samples the same with the same seed', async () => {
    const args = ['answer', fox, 'Describe the image.', '--temperature', '2', '--seed', '11', '--json'];
    const [first, second] = await Promise.all([qformer(args), qformer(args)]);
    expect(parse(first.stdout)).toMatchObject({ seed: 11 });
    expect(parse(second.stdout).tokenIds).toEqual(parse(first.stdout).tokenIds);
  });
});

describe('qformer chat', () => {
  it('answers each line of a pipe until it ends', async () => {
    const { stdout, stderr, code } = await qformer(['chat', fox], { input: 'What is this?\n这是什么？\n' });
    expect(lines(stdout)).toEqual(['This is a fox.', '这是一只狐狸。']);
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
  });

  it('ends at an empty line', async () => {
    const { stdout } = await qformer(['chat', fox, '--json'], { input: 'What is this?\n\nDescribe the image.\n' });
    expect(lines(stdout).map(parse)).toEqual([expect.objectContaining({ text: 'This is a fox.' })]);
  });
});

describe('an interrupt', () => {
  it('ends a command with exit code 130 and no message', async () => {
    const { stdout, stderr, code } = await qformer(['chat', fox], {
      input: 'What is this?\n',
      keepOpen: true,
      during: (child) => child.stdout!.on('data', (text: string) => text.endsWith('\n') && child.kill('SIGINT')),
    });
    expect(stdout).toBe('This is a fox.\n');
    expect({ stderr, code }).toEqual({ stderr: '', code: 130 });
  });
});

describe('qformer demo', () => {
  it('prints an English caption, a Chinese answer and timings', async () => {
    const { stdout, stderr, code } = await qformer(['demo']);
    expect(stdout).toMatch(/A fox on a blue background\.[^]*这是一只狐狸。[^]*load .* ms.* tokens\/s/);
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
  });

  it('prints two JSON objects with --json', async () => {
    const { stdout } = await qformer(['demo', '--json']);
    expect(lines(stdout).map((line) => parse(line).text)).toEqual(['A fox on a blue background.', '这是一只狐狸。']);
  });
});

describe('qformer info', () => {
  it('prints parts, parameters and bytes by type', async () => {
    const { stdout, code } = await qformer(['info', join('models', 'emoji-vlm')]);
    expect(stdout).toMatch(/vision encoder\s+66\s+2,274,432/);
    expect(stdout).toMatch(/total\s+220\s+7,960,192\s+15\.2 MiB/);
    expect(stdout).toMatch(/F16\s+15\.2 MiB/);
    expect(code).toBe(0);
  });

  it('prints the same as JSON', async () => {
    const info = parse((await qformer(['info', '--json'])).stdout) as {
      parameters: number;
      parts: { parameters: number }[];
    };
    expect(info.parameters).toBe(7_960_192);
    expect(info.parts.reduce((sum, part) => sum + part.parameters, 0)).toBe(info.parameters);
  });

  it('counts every adapter that is named', async () => {
    const model = fixturePath('instructblip-vicuna-tiny');
    const dirs = ['adapter_a_standard', 'adapter_d_vision'].map((name) => fixturePath('lora', name));
    const flags = dirs.flatMap((dir) => ['--adapter', dir]);
    const { adapters, required } = estimateMemory(model, { adapters: dirs });
    const info = parse((await qformer(['info', model, ...flags, '--json'])).stdout) as {
      memory: { adapters: number; required: number };
    };
    expect(info.memory).toMatchObject({ adapters, required });
    expect(adapters).toBeGreaterThan(estimateMemory(model, { adapters: dirs.slice(0, 1) }).adapters);
    const line = new RegExp(`^adapters +${bytes(adapters)}$`, 'm');
    expect((await qformer(['info', model, ...flags])).stdout).toMatch(line);
    expect((await qformer(['info', model])).stdout).not.toMatch(/^adapters/m);
  });
});
