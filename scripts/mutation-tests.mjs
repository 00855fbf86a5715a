// Plants each mistake of test/emulator/mutations.mjs in a copy of the kernels and checks that a native test on the
// emulated GPU fails, and for the reason given: `node scripts/mutation-tests.mjs [--sample N] [--jobs N] [--write] [TEXT]`.
//
// TEXT selects by part of the description; --sample takes N of them, others on another day; --write renews
// test/emulator/MUTATIONS.md. Only the translation unit concerned is compiled anew, in build/mutations, and linked with the
// objects of build/emulated. Exit code 1 when a mistake went unnoticed or its place in the source is gone.
import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { mutations } from '../test/emulator/mutations.mjs';
import { configureEmulated } from './build-emulated.mjs';
import { step } from './steps.mjs';

const TIME_LIMIT_MS = 300_000;
/** What a report can say, first match wins; a failed check without a report of the emulator is a wrong value. */
const KINDS = [
  ['bank conflicts', /bank_conflicts/],
  ['copy under way', /has not been waited for|cp\.async of thread/],
  ['fence', /no fence and atomic/],
  ['race', /\brace\b/],
  ['uninitialised', /nobody has written|never written/],
  ['out of bounds', /of a piece of|at byte|allocation/],
  ['divergence', /divergent|deadlock|exits/],
];

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const work = join(root, 'build', 'mutations');
const build = join(root, 'build', 'emulated');

function run(command, args, options) {
  return new Promise((resolve) => {
    execFile(command, args, { maxBuffer: 1 << 26, ...options }, (error, stdout, stderr) =>
      resolve({ status: error === null ? 0 : (error.code ?? error.signal), output: `${stdout}${stderr}` }),
    );
  });
}

/** The mutated text of a source; throws where what is to be replaced does not stand there exactly once. */
export function mutate({ what, file, find, replace }) {
  const source = readFileSync(join(root, 'cuda', file), 'utf8');
  const parts = source.split(find);
  if (parts.length !== 2)
    throw new Error(`${what}: cuda/${file} has the text ${parts.length - 1} times, not once: ${find}`);
  return parts.join(replace);
}

/** How a failed run was noticed: by the emulator's first report, else by the first check that failed, and in which case. */
function classify(output) {
  const lines = output.split('\n');
  const fault = lines.find((line) => line.startsWith('emulator: '));
  const message = fault ?? lines.find((line) => /^ {2}\S+:\d+: /.test(line)) ?? '';
  const failed = lines.find((line) => line.startsWith('FAILED '))?.slice('FAILED '.length) ?? '';
  const kind = KINDS.find(([, pattern]) => pattern.test(message))?.[0];
  return { kind: kind ?? (fault === undefined ? 'wrong value' : 'another fault'), failed, message: message.trim() };
}

const commands = () => JSON.parse(readFileSync(join(build, 'compile_commands.json'), 'utf8'));

async function attempt(mutation, index) {
  const begin = performance.now();
  const folder = join(work, String(index));
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  cpSync(join(root, 'cuda'), join(folder, 'cuda'), { recursive: true });
  writeFileSync(join(folder, 'cuda', mutation.file), mutate(mutation));

  const source = join(root, 'cuda', mutation.object);
  const { command } = commands().find(({ file }) => file === source);
  const object = /-o (\S+)/.exec(command)[1];
  const compile = command
    .replaceAll(join(root, 'cuda'), join(folder, 'cuda'))
    .replace(`-o ${object}`, `-w -O1 -o ${join(folder, 'mutant.o')}`);
  const compiled = await run('sh', ['-c', compile], { cwd: build });
  if (compiled.status !== 0) return { kind: 'does not compile', failed: '', message: compiled.output.slice(0, 400) };

  // The mutant comes first: of an inline function in several objects the linker takes the first.
  const link = readFileSync(join(build, 'CMakeFiles', `${mutation.program}.dir`, 'link.txt'), 'utf8')
    .replace(` ${object}`, '')
    .replace(/ CMakeFiles/, ` ${join(folder, 'mutant.o')} CMakeFiles`)
    .replace(/-o \S+/, `-o ${join(folder, mutation.program)}`);
  const linked = await run('sh', ['-c', link], { cwd: build });
  if (linked.status !== 0) return { kind: 'does not link', failed: '', message: linked.output.slice(-400) };

  const result = await run(join(folder, mutation.program), [], {
    timeout: TIME_LIMIT_MS,
    env: { ...process.env, QFORMER_EMULATOR_REPORT: '1' },
  });
  rmSync(folder, { recursive: true, force: true });
  const seconds = (performance.now() - begin) / 1000;
  if (result.status === 0) return { kind: 'not caught', failed: '', message: '', seconds };
  // A fault poisons the device, so what comes after the first message says nothing, not even a crash.
  return { ...classify(result.output), seconds };
}

function table(results) {
  const rows = results.map(({ what, file, program, kind, failed }) => [
    what,
    `\`${file}\``,
    kind,
    `\`${program}\`: ${failed}`,
  ]);
  const all = [['mistake', 'in', 'caught as', 'by'], ...rows];
  const widths = all[0].map((_, i) => Math.max(...all.map((row) => [...row[i]].length)));
  const line = (row) => `| ${row.map((cell, i) => cell + ' '.repeat(widths[i] - [...cell].length)).join(' | ')} |`;
  const rule = `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`;
  return [line(all[0]), rule, ...rows.map(line)].join('\n');
}

export const page = (results) => `# Mistakes that the emulated GPU catches

Written by \`npm run test:mutations -- --write\`. Each row is one slip, planted in a copy of the kernels as they ship
([mutations.mjs](mutations.mjs) has the exact change): the native test named fails with it, for the reason given, and
passes without it.

${table(results)}
`;

/** `count` of them that change from day to day. */
function sample(list, count) {
  const day = Math.floor(Date.now() / 86_400_000);
  return Array.from({ length: Math.min(count, list.length) }, (_, i) => list[(day * count + i) % list.length]);
}

function report({ what, caught, kind, failed, message, seconds }) {
  const good = caught.includes(kind);
  const time = seconds === undefined ? '' : `, ${seconds.toFixed(0)} s`;
  console.log(`mutation-tests: ${good ? 'ok' : 'NOT AS EXPECTED'}: ${what}: ${kind}, by "${failed}"${time}`);
  if (!good) console.log(`    ${message}`);
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      sample: { type: 'string' },
      jobs: { type: 'string', default: '2' },
      write: { type: 'boolean', default: false },
    },
  });
  for (const mutation of mutations) mutate(mutation);
  const matching = mutations.filter(({ what }) => what.includes(positionals[0] ?? ''));
  const selected = values.sample === undefined ? matching : sample(matching, Number(values.sample));

  configureEmulated();
  const programs = [...new Set(selected.map(({ program }) => program))];
  const target = ['--build', build, '--parallel', '2', '--target', ...programs];
  step('Building the native tests', 'cmake', target, { cwd: root });

  const waiting = [...selected.entries()];
  const results = [];
  const worker = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [index, mutation] = next;
      results[index] = { ...mutation, ...(await attempt(mutation, index)) };
      report(results[index]);
    }
  };
  await Promise.all(Array.from({ length: Number(values.jobs) }, worker));
  const good = results.filter(({ caught, kind }) => caught.includes(kind));
  console.log(`mutation-tests: ${good.length} of ${results.length} caught as expected`);
  if (values.write) writeFileSync(join(root, 'test', 'emulator', 'MUTATIONS.md'), page(results));
  return results.length > 0 && good.length === results.length;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = (await main()) ? 0 : 1;
