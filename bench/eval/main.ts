// `npm run bench:eval`: the demonstration model through `qformer eval`, its 504 reference questions as questions, and those that
// ask for a description as captions; prints the reports and the reference's own exact match as JSON.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../lib/package-root.js';
import { describeMachine } from '../machine.js';
import { qformerCommand } from '../processes.js';

const EVALUATION = join(packageRoot(), 'test', 'fixtures', 'emoji-eval');
const MAX_NEW_TOKENS = '48';

interface Reference {
  reference_exact_match: number;
  items: { image: string; questions: { lang: string; task: string; prompt: string; expected: string }[] }[];
}

const reference = JSON.parse(readFileSync(join(EVALUATION, 'reference.json'), 'utf8')) as Reference;
const questions = reference.items.flatMap(({ image, questions: asked }) =>
  asked.map((question) => ({ ...question, image: join(EVALUATION, image) })),
);
const captions = (lang: string): object[] =>
  questions
    .filter((question) => question.task === 'caption' && question.lang === lang)
    .map(({ image, expected }) => ({ image, references: [expected] }));
const asked = questions.map(({ image, prompt, expected }) => ({ image, question: prompt, references: [expected] }));

const dir = mkdtempSync(join(tmpdir(), 'qformer-eval-'));
try {
  const run = (name: string, items: readonly object[], ...flags: string[]): object => {
    const file = join(dir, `${name}.jsonl`);
    writeFileSync(file, items.map((item) => `${JSON.stringify(item)}\n`).join(''));
    const cli = qformerCommand();
    const began = performance.now();
    const args = [cli, 'eval', file, '--json', '--max-new-tokens', MAX_NEW_TOKENS, ...flags];
    const report = JSON.parse(execFileSync(process.execPath, args, { encoding: 'utf8' })) as object;
    return { ...report, seconds: Number(((performance.now() - began) / 1000).toFixed(1)) };
  };
  const reports = {
    questions: run('questions', asked),
    englishCaptions: run('en', captions('en'), '--lang', 'en'),
    chineseCaptions: run('zh', captions('zh'), '--lang', 'zh'),
  };
  const { reference_exact_match: referenceExactMatch } = reference;
  console.log(JSON.stringify({ machine: describeMachine(), referenceExactMatch, ...reports }, null, 2));
} finally {
  rmSync(dir, { recursive: true, force: true });
}
