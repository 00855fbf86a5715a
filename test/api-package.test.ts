// The package as its users import it: from ES modules, from CommonJS, and from inside a worker thread.

import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packageRoot } from '../lib/package-root.js';

const ask = `
  const model = await loadModel('models/emoji-vlm');
  const error = await loadModel('no-such-folder').catch((reason) => reason);
  const { text } = await model.answer('models/samples/fox_noto.png', 'What is this?');
  await model.dispose();
  console.log(JSON.stringify([text, isQFormerError(error), error.code]));`;
const expected = ['This is a fox.', true, 'IO'];

function node(code: string, ...flags: string[]): Promise<{ stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [...flags, '--eval', code], { cwd: packageRoot() }, (_error, stdout, stderr) => {
      resolve({ stdout, stderr });
    });
  });
}

describe('the package', () => {
  it('answers from an ES module', async () => {
    const { stdout, stderr } = await node(
      `import { loadModel, isQFormerError } from 'qformer'; ${ask}`,
      '--input-type=module',
    );
    expect({ result: JSON.parse(stdout || 'null') as unknown, stderr }).toEqual({ result: expected, stderr: '' });
  });

  it('answers from CommonJS', async () => {
    const { stdout, stderr } = await node(
      `const { loadModel, isQFormerError } = require('qformer'); (async () => {${ask}})();`,
    );
    expect({ result: JSON.parse(stdout || 'null') as unknown, stderr }).toEqual({ result: expected, stderr: '' });
  });

  it('answers from inside a worker thread', async () => {
    const inner = `const { loadModel, isQFormerError } = require('qformer'); (async () => {${ask}})();`;
    const { stdout, stderr } = await node(
      `new (require('node:worker_threads').Worker)(${JSON.stringify(inner)}, { eval: true });`,
    );
    expect({ result: JSON.parse(stdout || 'null') as unknown, stderr }).toEqual({ result: expected, stderr: '' });
  });

  it('lets the process end while a model is still loaded', async () => {
    const { stdout } = await node(
      `import { loadModel } from 'qformer'; await loadModel('models/emoji-vlm'); console.log('loaded');`,
      '--input-type=module',
    );
    expect(stdout).toBe('loaded\n');
  });

  it('has every file that package.json names', () => {
    const text = readFileSync(join(packageRoot(), 'package.json'), 'utf8');
    const files = [...text.matchAll(/"(?:\.\/)?(dist\/[^"]+)"/g)].map(([, file]) => file!);
    expect(files.length).toBeGreaterThan(6);
    expect(files.filter((file) => !existsSync(join(packageRoot(), file)))).toEqual([]);
  });
});
