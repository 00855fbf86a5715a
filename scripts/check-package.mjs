// What `npm publish` would ship: everything a user needs is in, nothing of the workshop is.
import { execFileSync } from 'node:child_process';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const NEEDED = [
  'package.json',
  'LICENSE',
  'NOTICE',
  'README.md',
  'CMakeLists.txt',
  'cmake/layers.cmake',
  'csrc/backend/backend.h',
  'csrc/napi/addon.cpp',
  'dist/index.js',
  'dist/index.cjs',
  'dist/index.d.ts',
  'dist/index.d.cts',
  'dist/tensor.js',
  'dist/tensor.cjs',
  'dist/tensor.d.ts',
  'dist/worker.js',
  'dist/worker.cjs',
  'dist/cli.cjs',
  'models/emoji-vlm/model.safetensors',
  'models/emoji-vlm/README.md',
  'models/emoji-vlm/NOTICE.txt',
  'models/samples/samples.json',
];
const FOREIGN = [
  /^test\//,
  /^bench\//,
  /^scripts\//,
  /^build/,
  /^\.ci/,
  /^lib\//,
  /^csrc\/(test|fuzz)\//,
  /^dist\/.*\.map$/,
  /^models\/emoji-itm\//,
];
const MAX_UNPACKED_BYTES = 40e6;

const json = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts', '--silent'], {
  cwd: root,
  encoding: 'utf8',
  maxBuffer: 1 << 26,
  stdio: ['ignore', 'pipe', 'ignore'],
});
const [pack] = JSON.parse(json);
const files = new Set(pack.files.map((file) => file.path));
const problems = [
  ...NEEDED.filter((file) => !files.has(file)).map((file) => `missing: ${file}`),
  ...[...files].filter((file) => FOREIGN.some((pattern) => pattern.test(file))).map((file) => `surplus: ${file}`),
];
if (pack.unpackedSize > MAX_UNPACKED_BYTES) problems.push(`unpacked size ${pack.unpackedSize} > ${MAX_UNPACKED_BYTES}`);

for (const problem of problems) console.error(`check-package: ${problem}`);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
console.log(
  `check-package: ${files.size} files, ${megabytes(pack.size)} packed, ${megabytes(pack.unpackedSize)} unpacked`,
);
process.exitCode = problems.length > 0 ? 1 : 0;
