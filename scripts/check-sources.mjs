// Rules about source files that no linter knows: length, includes across layers by path, machine paths.
//
// A file may be longer than 400 lines when one of its first lines says why: `// Long because: ...`.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';

const MAX_LINES = 400;
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const tracked = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: root,
  encoding: 'utf8',
});
const sources = tracked.split('\n').filter((file) => /\.(ts|mts|js|mjs|h|cpp|cu|cuh|cmake|sh)$/.test(file));

/** The folder of csrc/ a path lies in: past it, includes go through the roots that CMake gives the layer. */
const layerFolder = (path) => path.split('/').slice(0, 2).join('/');

/** What is wrong with one file, as sentences. */
export function problemsOf(file, text) {
  const problems = [];
  const lines = text.replace(/\n$/, '').split('\n');
  const excused = lines.slice(0, 8).some((line) => /Long because: \S/.test(line));
  if (lines.length > MAX_LINES && !excused)
    problems.push(`${lines.length} lines, at most ${MAX_LINES} without a reason`);
  lines.forEach((line, index) => {
    const included = /^\s*#\s*include\s*"([^"]*\.\.\/[^"]*)"/.exec(line)?.[1];
    if (included && layerFolder(posix.join(posix.dirname(file), included)) !== layerFolder(file)) {
      problems.push(`line ${index + 1}: include of another layer through '..'`);
    }
    if (/["'`\s(](\/tmp\/|\/home\/|\/root\/)\w/.test(line)) problems.push(`line ${index + 1}: a path of one machine`);
  });
  return problems;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = sources.flatMap((file) =>
    problemsOf(file, readFileSync(join(root, file), 'utf8')).map((problem) => `${file}: ${problem}`),
  );
  for (const line of found) console.error(line);
  console.log(`check-sources: ${sources.length} files, ${found.length} problems`);
  process.exitCode = found.length > 0 ? 1 : 0;
}
