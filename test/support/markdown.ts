// Fenced code blocks of a Markdown file.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../../lib/package-root.js';

/** A fenced block and the `text` block after it, which is its expected output. */
export interface CodeBlock {
  language: string;
  code: string;
  line: number;
  output?: string;
}

/** The blocks of a file in the package folder, in order. */
export function codeBlocks(file: string): CodeBlock[] {
  const text = readFileSync(join(packageRoot(), file), 'utf8');
  const blocks: CodeBlock[] = [];
  for (const match of text.matchAll(/^```(\w+)\n([^]*?)^```$/gm)) {
    const [, language, code] = match as unknown as [string, string, string];
    const line = text.slice(0, match.index).split('\n').length;
    if (language === 'text') blocks.at(-1)!.output = code;
    else blocks.push({ language, code, line });
  }
  return blocks;
}

/** Whether `actual` is `expected`, where `…` in `expected` stands for anything. */
export function matches(actual: string, expected: string): boolean {
  const escaped = expected.split('…').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${escaped.join('[^]*')}$`).test(actual);
}
