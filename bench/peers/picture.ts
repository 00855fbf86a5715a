// The picture of a comparison: one bar for each peer of each row, our speed over its on a logarithmic scale. Right of the line at 1 we
// are faster, left of it slower; a whisker spans the middle half, a tick marks the ratio that was to be reached.

import type { Machine } from '../machine.js';
import { round } from '../report-rows.js';
import type { ComparisonRow, RivalFigures } from './comparison.js';

const WIDTH = 1000;
const LABEL = 430;
/** Room right of the scale, for the figure. */
const FIGURE = 110;
const LINE = 20;
const TITLE = 64;
const FOOT = 34;
const MIN_RATIO = 0.25;
const MAX_RATIO = 16;
const COLOURS = {
  met: '#2f7d4f',
  lost: '#b5403a',
  none: '#5b7690',
  text: '#222222',
  faint: '#9a9a9a',
  back: '#ffffff',
};

interface Bar {
  label: string;
  ratio: NonNullable<RivalFigures['ratio']>;
  wanted: number | undefined;
}

/** An SVG document; rows without a peer are left out. */
export function picture(rows: readonly ComparisonRow[], machine: Pick<Machine, 'cpu' | 'date'>): string {
  const threads = [...new Set(rows.map((row) => row.threads))].sort((a, b) => a - b);
  const parts: string[] = [];
  let y = TITLE;
  for (const count of threads) {
    parts.push(text(16, y + 14, `${count} thread${count === 1 ? '' : 's'}`, { weight: 'bold' }));
    y += LINE + 4;
    for (const bar of rows.filter((row) => row.threads === count).flatMap(barsOf)) {
      parts.push(...draw(bar, y));
      y += LINE;
    }
    y += 8;
  }
  const height = y + FOOT;
  const title = `Our speed over each peer's: ${machine.cpu}, ${machine.date.slice(0, 10)}`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="sans-serif" font-size="12">`,
    `<title>${escaped(title)}</title>`,
    `<rect width="${WIDTH}" height="${height}" fill="${COLOURS.back}"/>`,
    text(16, 26, title, { weight: 'bold', size: 15 }),
    text(
      16,
      46,
      'right of 1: ours is faster; whisker: middle half of the turns; dark tick: what was to be reached',
      {},
    ),
    ...axis(y),
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

function barsOf(row: ComparisonRow): Bar[] {
  return row.rivals.flatMap(({ peer, weights, ratio }) => {
    if (ratio === undefined) return [];
    const label = `${row.group}: ${row.name} / ${peer} ${weights}`;
    return [{ label, ratio, wanted: wantedOf(row, peer, weights) }];
  });
}

// Bars read "≥ 1.2 × NAME"; that of the best peer names it in brackets.
function wantedOf({ judgements }: ComparisonRow, peer: string, weights: string): number | undefined {
  const found = judgements.find(
    ({ bar }) => bar.endsWith(`${peer} ${weights}`) || bar.endsWith(`(${peer} ${weights})`),
  );
  return found === undefined ? undefined : Number(/≥ ([\d.]+)/.exec(found.bar)?.[1]);
}

function draw({ label, ratio, wanted }: Bar, y: number): string[] {
  const [one, end] = [position(1), position(ratio.median)];
  const middle = y + LINE / 2;
  const fill = wanted === undefined ? COLOURS.none : ratio.median >= wanted ? COLOURS.met : COLOURS.lost;
  const lost = wanted !== undefined && ratio.median < wanted ? ' LOST' : '';
  const [low, high] = [position(ratio.p25), position(ratio.p75)];
  const tick =
    wanted === undefined ? [] : [line(position(wanted), y + 1, position(wanted), y + LINE - 1, COLOURS.text, 2)];
  return [
    text(LABEL - 8, middle + 4, label, { anchor: 'end', size: 11 }),
    `<rect x="${Math.min(one, end).toFixed(1)}" y="${y + 4}" width="${Math.max(1, Math.abs(end - one)).toFixed(1)}" height="${LINE - 8}" fill="${fill}"/>`,
    line(low, middle, high, middle, COLOURS.text, 1),
    ...tick,
    text(WIDTH - FIGURE, middle + 4, `${round(ratio.median)} ×${lost}`, {
      size: 11,
      weight: lost === '' ? 'normal' : 'bold',
    }),
  ];
}

function axis(bottom: number): string[] {
  const steps = [0.25, 0.5, 1, 2, 4, 8, 16];
  return steps.flatMap((ratio) => [
    line(position(ratio), TITLE, position(ratio), bottom, ratio === 1 ? COLOURS.text : '#e2e2e2', 1),
    text(position(ratio), bottom + 16, `${ratio} ×`, { anchor: 'middle', colour: COLOURS.faint }),
  ]);
}

function position(ratio: number): number {
  const clamped = Math.min(MAX_RATIO, Math.max(MIN_RATIO, ratio));
  const width = WIDTH - FIGURE - 20 - LABEL;
  return LABEL + (width * Math.log2(clamped / MIN_RATIO)) / Math.log2(MAX_RATIO / MIN_RATIO);
}

function line(x1: number, y1: number, x2: number, y2: number, colour: string, width: number): string {
  const [a, b] = [x1.toFixed(1), x2.toFixed(1)];
  return `<line x1="${a}" y1="${y1}" x2="${b}" y2="${y2}" stroke="${colour}" stroke-width="${width}"/>`;
}

function text(
  x: number,
  y: number,
  content: string,
  { anchor = 'start', size = 12, weight = 'normal', colour = COLOURS.text },
): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="${size}" font-weight="${weight}" fill="${colour}">${escaped(content)}</text>`;
}

function escaped(content: string): string {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
