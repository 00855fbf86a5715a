// What run.sh does: sections one after the other, each a process of its own with a time limit, so that a failing or
// hanging one costs nothing but itself. Writes report.json (everything) and report.md (a table for people).
import { spawn } from 'node:child_process';
import { createWriteStream, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { markdown } from './report.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const DEVICES = ['cuda', 'cpu', 'emulated'];
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: 'string' }, out: { type: 'string', default: join(root, 'results') } },
});
const manifest = JSON.parse(readFileSync(join(root, 'gpu', 'manifest.json'), 'utf8'));
const out = values.out;
mkdirSync(out, { recursive: true });

const emulated = join(root, 'build', 'emulated', 'libqformer_emulated.so');
const baseEnvironment = () => ({
  ...process.env,
  NO_COLOR: '1',
  ...(existsSync(emulated) && {
    QFORMER_BACKENDS: [emulated, process.env.QFORMER_BACKENDS].filter(Boolean).join(delimiter),
  }),
});

/** Runs a command with its output in a log; resolves to { ok, timedOut, seconds, output }. */
function run(log, command, args, { seconds, env = {} }) {
  const begin = performance.now();
  const file = createWriteStream(log, { flags: 'a' });
  file.write(`$ ${[command, ...args].join(' ')}\n`);
  const child = spawn(command, args, {
    cwd: root,
    env: { ...baseEnvironment(), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  let timedOut = false;
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (data) => {
      file.write(data);
      output = (output + data).slice(-200_000);
    });
  }
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill('SIGKILL');
  }, seconds * 1000);
  return new Promise((resolve) => {
    const end = (ok, reason) => {
      clearTimeout(timer);
      file.end(reason === undefined ? '' : `${reason}\n`);
      resolve({ ok, timedOut, output, reason, seconds: (performance.now() - begin) / 1000 });
    };
    child.on('error', (error) => end(false, error.message));
    child.on('close', (code, signal) => end(code === 0, code === 0 ? undefined : (signal ?? `exit code ${code}`)));
  });
}

const node = (log, args, options) => run(log, process.execPath, args, options);

/** The last line of JSON in an output, if any. */
function lastJson(output) {
  const line = output
    .trim()
    .split('\n')
    .reverse()
    .find((text) => text.startsWith('{'));
  try {
    return line === undefined ? undefined : JSON.parse(line);
  } catch {
    return undefined;
  }
}

async function runTests(name, device, files, seconds, wrapper = []) {
  const log = join(out, `${name}.log`);
  const total = { passed: 0, failed: 0, skipped: 0, files: [] };
  const end = performance.now() + seconds * 1000;
  for (const file of files) {
    const left = Math.max(1, (end - performance.now()) / 1000);
    const [command, ...args] = [...wrapper, process.execPath, 'gpu/test-file.mjs', file];
    const result = await run(log, command, args, { seconds: left, env: { QFORMER_TEST_DEVICES: device } });
    const counts = lastJson(result.output) ?? { passed: 0, failed: 1, skipped: 0 };
    for (const key of ['passed', 'failed', 'skipped']) total[key] += counts[key];
    if (!result.ok && counts.failed === 0) total.failed++;
    total.files.push({ file, ok: result.ok, timedOut: result.timedOut, seconds: result.seconds, ...counts });
    console.log(`  ${file}: ${counts.passed} passed, ${counts.failed} failed${result.timedOut ? ', out of time' : ''}`);
  }
  return { ok: total.failed === 0 && total.passed > 0, ...total };
}

function findProgram(name, folders = []) {
  const all = [...(process.env.PATH ?? '').split(delimiter), ...folders];
  return all.map((folder) => join(folder, name)).find((file) => existsSync(file));
}

const skipped = (reason) => ({ ok: true, skipped: reason });

const SECTIONS = {
  async doctor() {
    const result = await node(join(out, 'doctor.log'), ['dist/cli.cjs', 'doctor', '--json'], { seconds: 60 });
    return { ok: result.ok, report: lastJson(result.output) };
  },
  ops: (device) => runTests('ops', device, manifest.tests.ops, 900),
  models: (device) => runTests('models', device, manifest.tests.models, 900),
  engine: (device) => runTests('engine', device, manifest.tests.engine, 1800),
  async demo(device) {
    const args = ['dist/cli.cjs', 'demo', '--device', device];
    const result = await node(join(out, 'demo.log'), args, { seconds: 300 });
    return { ok: result.ok, output: result.output.trim().split('\n') };
  },
  async sanitizer(device) {
    if (device !== 'cuda') return skipped('needs a GPU');
    const tool = findProgram('compute-sanitizer', ['/usr/local/cuda/bin', '/opt/cuda/bin']);
    if (tool === undefined) return skipped('no compute-sanitizer');
    const sections = {};
    for (const check of ['memcheck', 'racecheck']) {
      const wrapper = [tool, '--tool', check, '--error-exitcode', '9', '--target-processes', 'all'];
      sections[check] = await runTests(`sanitizer-${check}`, device, manifest.tests.sanitizer, 420, wrapper);
    }
    return { ok: Object.values(sections).every(({ ok }) => ok), ...sections };
  },
  async bench(device) {
    const log = join(out, 'bench.log');
    const file = join(out, 'bench.json');
    const args = ['gpu/bench.js', '--device', device, '--out', file, ...(device === 'cuda' ? [] : ['--smoke'])];
    const result = await node(log, args, { seconds: 900 });
    return { ok: result.ok, ...(existsSync(file) && JSON.parse(readFileSync(file, 'utf8'))) };
  },
  async peers(device) {
    if (device !== 'cuda') return skipped('needs a GPU');
    const python = findProgram('python3');
    const cases = join(out, 'bench.json');
    if (python === undefined || !existsSync(cases)) return skipped(python ? 'nothing was measured' : 'no python3');
    const file = join(out, 'peers.json');
    const result = await run(join(out, 'peers.log'), python, ['gpu/peers.py', cases, file], { seconds: 600 });
    if (/No module named 'torch'/.test(result.output)) return skipped('no PyTorch');
    return { ok: result.ok, ...(existsSync(file) && JSON.parse(readFileSync(file, 'utf8'))) };
  },
};

async function chooseDevice() {
  const wanted = positionals[0];
  if (wanted !== undefined && !DEVICES.includes(wanted))
    throw new Error(`the device must be one of ${DEVICES.join(', ')}`);
  const { report } = await SECTIONS.doctor();
  if (wanted !== undefined) return wanted;
  const found = report?.native.devices.some(({ name }) => name.startsWith('cuda')) ? 'cuda' : 'cpu';
  for (const { device, reason } of report?.unused ?? []) console.log(`no ${device}: ${reason}`);
  return found;
}

async function main() {
  const device = await chooseDevice();
  const names = values.only?.split(',') ?? Object.keys(SECTIONS);
  const unknown = names.find((name) => !(name in SECTIONS));
  if (unknown !== undefined) throw new Error(`there is no section '${unknown}': ${Object.keys(SECTIONS).join(', ')}`);
  const report = { device, version: manifest.version, started: new Date().toISOString(), sections: {} };
  for (const name of names) {
    console.log(`== ${name}`);
    const begin = performance.now();
    const result = await SECTIONS[name](device).catch((error) => ({ ok: false, error: String(error) }));
    report.sections[name] = { seconds: (performance.now() - begin) / 1000, ...result };
    console.log(
      `-- ${result.skipped && typeof result.skipped === 'string' ? `skipped: ${result.skipped}` : result.ok ? 'ok' : 'FAILED'}`,
    );
    // After every section, so that a machine taken away leaves what there is.
    writeFileSync(join(out, 'report.json'), JSON.stringify(report, null, 1));
    writeFileSync(join(out, 'report.md'), markdown(report));
  }
  console.log(readFileSync(join(out, 'report.md'), 'utf8'));
  process.exitCode = Object.values(report.sections).every(({ ok }) => ok) ? 0 : 1;
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 2;
});
