// `npm run bench:retrieval`: an index over 1,000 variants of the evaluation pictures, built and searched by the command line;
// prints images per second, search times and Recall@K with and without re-ranking by the matching head, as JSON.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { recallAtK } from '../../lib/eval/recall.js';
import { packageRoot } from '../../lib/package-root.js';
import { describeMachine } from '../machine.js';
import { importPackage } from '../model/package.js';
import { qformerCommand } from '../processes.js';
import { makeGallery } from './gallery.js';

const IMAGES = 1000;
const RERANKED = 10;
const MODEL = join(packageRoot(), 'models', 'emoji-itm');
const EVALUATION = join(packageRoot(), 'test', 'fixtures', 'emoji-eval');

interface Item {
  image: string;
  objects: { en: string; zh: string }[];
}

const dir = mkdtempSync(join(tmpdir(), 'qformer-retrieval-'));
try {
  const { items } = JSON.parse(readFileSync(join(EVALUATION, 'reference.json'), 'utf8')) as { items: Item[] };
  const files = new Map(items.map(({ image, objects }) => [join(EVALUATION, image), objects.map(({ en }) => en)]));
  const gallery = await makeGallery([...files.keys()], IMAGES, join(dir, 'gallery'));
  const index = join(dir, 'gallery.index');
  const cli = (...args: string[]): string =>
    execFileSync(process.execPath, [qformerCommand(), ...args, '--model', MODEL, '--json'], {
      encoding: 'utf8',
    });
  const built = JSON.parse(cli('index', ...gallery.map(({ file }) => file), '--output', index)) as object;
  const { ms: coldSearchMs } = JSON.parse(cli('search', index, 'a kite', '--rerank')) as { ms: number };
  const names = [...new Set([...files.values()].flat())];
  const relevant = names.map((name) =>
    gallery.filter(({ original }) => files.get(original)!.includes(name)).map(({ file }) => file),
  );
  const searches = await searchAll(index, names, relevant);
  const report = { machine: describeMachine(), built: { ...built, index: undefined }, coldSearchMs, searches };
  console.log(JSON.stringify(report, null, 2));
} finally {
  rmSync(dir, { recursive: true, force: true });
}

/** Every name as a query, one after the other. */
async function searchAll(file: string, names: readonly string[], relevant: readonly string[][]): Promise<object[]> {
  const { ImageIndex, loadModel } = await importPackage();
  const model = await loadModel(MODEL, { device: 'cpu' });
  const loaded = ImageIndex.load(file, model);
  const rows: object[] = [];
  for (const rerank of [0, RERANKED]) {
    const began = performance.now();
    const ranked: string[][] = [];
    for (const name of names) ranked.push((await loaded.search(`a ${name}`, { rerank })).map(({ id }) => id));
    const msPerQuery = Number(((performance.now() - began) / names.length).toFixed(2));
    const recall = [1, 5, 10].map((k) => Number(recallAtK(ranked, relevant, k).toFixed(3)));
    rows.push({ rerank, queries: names.length, msPerQuery, 'recall@1,5,10': recall });
  }
  await model.dispose();
  return rows;
}
