// `qformer eval`: the demonstration model's accuracy, going on after a kill, and data sets and results that are wrong.

import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel } from '../lib/index.js';
import { packageRoot } from '../lib/package-root.js';
import { qformer } from './support/cli-process.js';
import { fixturePath, readJson } from './support/fixtures.js';

interface Reference {
  reference_exact_match: number;
  items: {
    image: string;
    objects: { en: string }[];
    questions: { prompt: string; expected: string; task: string; min_margin: number }[];
  }[];
}
const ITM = join('models', 'emoji-itm');
const reference = readJson<Reference>('emoji-eval', 'reference.json');
const questions = reference.items.flatMap(({ image, questions: asked }) =>
  asked.map((question) => ({ ...question, image: fixturePath('emoji-eval', image) })),
);

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'qformer-eval-'));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Writes a data set and returns its path. */
function dataset(name: string, items: readonly object[]): string {
  const file = join(dir, name);
  writeFileSync(file, items.map((item) => `${JSON.stringify(item)}\n`).join(''));
  return file;
}

const asked = questions.map(({ image, prompt, expected }) => ({ image, question: prompt, references: [expected] }));
const run = (...args: string[]) => qformer(['eval', ...args]);
const linesOf = (file: string) => readFileSync(file, 'utf8').trimEnd().split('\n');

describe('qformer eval', () => {
  it('reproduces the accuracy of the demonstration model on its 504 reference questions', async () => {
    const { stdout, stderr, code } = await run(dataset('all.jsonl', asked), '--max-new-tokens', '48', '--json');
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 });
    const report = JSON.parse(stdout) as { items: number; failed: number; questions: { exactMatch: number } };
    expect(report).toMatchObject({ items: 504, failed: 0, questions: { items: 504 } });
    // The reference itself is undecided where its best two logits are that close.
    const undecided = questions.filter(({ min_margin }) => min_margin < 0.01).length;
    const right = Math.round(504 * report.questions.exactMatch);
    expect(Math.abs(right - Math.round(504 * reference.reference_exact_match))).toBeLessThanOrEqual(undecided);
    expect(linesOf(join(dir, 'all.jsonl.results'))).toHaveLength(505);
  });

  it('scores captions where no question is asked, in the language that is asked for', async () => {
    const captions = questions
      .filter(({ task, prompt }) => task === 'caption' && /\p{sc=Han}/u.test(prompt))
      .map(({ image, expected }) => ({ image, references: [expected, expected] }));
    const file = dataset('captions.jsonl', captions);
    const { stdout } = await run(file, '--lang', 'zh');
    const pattern = new RegExp(
      `^${captions.length} items, 0 failed\\n${captions.length} captions: exact match ([\\d.]+) %, BLEU-4 ([\\d.]+) %, CIDEr-D ([\\d.]+)\\n$`,
    );
    const [, exact, bleu, cider] = pattern.exec(stdout)!.map(Number);
    expect(exact).toBeGreaterThan(30);
    expect(bleu).toBeGreaterThan(50);
    expect(cider).toBeGreaterThan(300);
  });

  it('reports the VQA accuracy of questions that several people answered', async () => {
    // answered right, with a short name as VQA data has them: lower case, no article
    const { image, prompt, expected } = questions.find(({ task }) => task === 'short')!;
    const references = [...Array<string>(2).fill(expected), ...Array<string>(8).fill('something else')];
    const { stdout } = await run(dataset('vqa.jsonl', [{ image, question: prompt, references }]), '--json');
    const report = JSON.parse(stdout) as { questions: { vqaAccuracy: number } };
    // of ten annotators two give that answer
    expect(report.questions.vqaAccuracy).toBeCloseTo(0.6, 12);
    const plain = await run(dataset('plain.jsonl', asked.slice(0, 3)));
    expect(plain.stdout).toMatch(/^3 items, 0 failed\n3 questions: exact match [\d.]+ %\n$/);
  });

  it('goes on after a kill, with what was done, past a last line that was cut off', async () => {
    const items = asked.slice(0, 200);
    const file = dataset('killed.jsonl', items);
    const results = `${file}.results`;
    expect((await run(file, '--output', results)).code).toBe(0);
    const whole = linesOf(results);
    const kept = whole.slice(0, 61);
    // What a kill leaves: some lines, and a piece of one. A text that no model writes shows what was not asked again.
    const marked = { ...(JSON.parse(kept[5]!) as object), text: 'kept' };
    kept[5] = JSON.stringify(marked);
    writeFileSync(results, `${kept.join('\n')}\n`);
    appendFileSync(results, whole[61]!.slice(0, 20));
    const { code, stderr } = await run(file, '--output', results);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const after = linesOf(results);
    expect(after.slice(0, 61)).toEqual(kept);
    const byLine = (lines: string[]) => lines.slice(1).map((line) => (JSON.parse(line) as { line: number }).line);
    expect(byLine(after).sort((a, b) => a - b)).toEqual(items.map((_, i) => i + 1));
    expect(after.slice(61).sort()).toEqual(whole.slice(61).sort());
  });

  it('keeps what it has when it is killed in the middle', async () => {
    const file = dataset('middle.jsonl', asked);
    const results = `${file}.results`;
    const count = (): number => (existsSync(results) ? linesOf(results).length : 0);
    const watch = (signal: NodeJS.Signals) => {
      const enough = count() + 20;
      return qformer(['eval', file], {
        during: (child) => {
          const timer = setInterval(() => count() > enough && child.kill(signal), 5);
          child.on('close', () => clearInterval(timer));
        },
      });
    };
    expect((await watch('SIGKILL')).signal).toBe('SIGKILL');
    const before = readFileSync(results, 'utf8');
    expect(before.split('\n').length).toBeLessThan(505);
    expect(await watch('SIGINT')).toMatchObject({ stdout: '', stderr: '', code: 130 });
    expect((await run(file)).code).toBe(0);
    const after = readFileSync(results, 'utf8');
    expect(after.startsWith(before.slice(0, before.lastIndexOf('\n') + 1))).toBe(true);
    expect(new Set(linesOf(results)).size).toBe(505);
  });

  it('reports Recall@K of a retrieval model in both directions', async () => {
    const singles = reference.items.filter(({ objects }) => objects.length === 1);
    const items = singles.map(({ image, objects: [object] }) => ({
      image: fixturePath('emoji-eval', image),
      references: [`a ${object!.en}`],
    }));
    const file = dataset('retrieval.jsonl', [...items, { image: 'missing.png', references: ['nothing'] }]);
    const { stdout, stderr, code } = await run(file, '--model', ITM, '--json');
    expect({ stderr, code }).toEqual({ stderr: expect.stringMatching(/^error IO: .*missing\.png/) as string, code: 1 });
    const texts = [...new Set(items.map(({ references }) => references[0]!))];
    await using model = await loadModel(join(packageRoot(), ITM), { device: 'cpu' });
    const scores = await model.similarity(
      items.map(({ image }) => image),
      texts,
    );
    // A query is answered within K where fewer than K others score higher than the best right one.
    const share = (ranks: number[], k: number) => ranks.filter((rank) => rank < k).length / ranks.length;
    const rank = (all: number[], right: number) => all.filter((score) => score > right).length;
    const right = items.map(({ references }, i) => scores[i]![texts.indexOf(references[0]!)]!);
    const byImage = items.map((_, i) => rank(scores[i]!, right[i]!));
    const byText = texts.map((text, at) => {
      const column = scores.map((row) => row[at]!);
      return rank(column, Math.max(...right.filter((_, i) => items[i]!.references[0] === text)));
    });
    const table = (ranks: number[]) => ({ 1: share(ranks, 1), 5: share(ranks, 5), 10: share(ranks, 10) });
    expect(JSON.parse(stdout)).toEqual({
      images: items.length,
      texts: texts.length,
      failed: 1,
      imageToText: table(byImage),
      textToImage: table(byText),
    });
    expect(table(byText)[5]).toBeGreaterThan(0.7);
    const plain = await run(dataset('few.jsonl', items.slice(0, 4)), '--model', ITM);
    expect(plain.stdout).toMatch(/^4 images, 4 texts, 0 failed\nimage to text: R@1 [\d.]+ %, R@5 100\.0 %, R@10/);
  });

  it('asks again what failed, and counts it', async () => {
    const file = dataset('failing.jsonl', [asked[0]!, { image: 'missing.png', question: 'What?', references: ['x'] }]);
    for (let i = 0; i < 2; i++) {
      const { stdout, stderr, code } = await run(file);
      expect(stdout).toMatch(/^2 items, 1 failed\n1 questions: /);
      expect(stderr).toMatch(/^error IO: .*missing\.png.*\n$/);
      expect(code).toBe(1);
    }
    expect(linesOf(`${file}.results`)).toHaveLength(2);
  });

  it('refuses results of other options or of another model', async () => {
    const file = dataset('mixed.jsonl', asked.slice(0, 2));
    expect((await run(file)).code).toBe(0);
    const other = await run(file, '--max-new-tokens', '3');
    expect(other.stderr).toMatch(/^error INVALID_ARGUMENT: .*mixed\.jsonl\.results: holds results of other options/);
    const [head, ...rest] = linesOf(`${file}.results`);
    const edited = head!.replace(/"model":"../, '"model":"zz');
    writeFileSync(`${file}.results`, `${[edited, ...rest].join('\n')}\n`);
    expect((await run(file)).stderr).toMatch(/results of another model/);
  });

  it.each([
    ['{"image": "a.png", "references": ["x"]\n', 1, /is not a JSON object/],
    ['{"image": "a.png", "references": ["x"]}\n\n{"references": ["x"]}\n', 3, /`image` must be a path/],
    ['{"image": "a.png", "references": []}\n', 1, /`references` must be a non-empty list/],
    ['{"image": "a.png", "question": 5, "references": ["x"]}\n', 1, /`question` must be a string/],
  ])('names the line of %j that is wrong', async (text, line, message) => {
    const file = join(dir, 'wrong.jsonl');
    writeFileSync(file, text);
    const { stderr, code } = await run(file);
    expect(stderr).toMatch(new RegExp(`^error FORMAT: .*wrong\\.jsonl:${line}: .*\\n$`));
    expect(stderr).toMatch(message);
    expect(code).toBe(1);
  });

  it('refuses an empty file and damaged results', async () => {
    const empty = dataset('empty.jsonl', []);
    expect((await run(empty)).stderr).toMatch(/error FORMAT: .*holds no items/);
    expect((await run(join(dir, 'none.jsonl'))).stderr).toMatch(/error IO: .*none\.jsonl/);
    const file = dataset('damaged.jsonl', asked.slice(0, 2));
    writeFileSync(`${file}.results`, 'something else\n');
    expect((await run(file)).stderr).toMatch(/error FORMAT: .*damaged\.jsonl\.results:1: /);
  });
});
