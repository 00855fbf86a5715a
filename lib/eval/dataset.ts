// What is evaluated: a file with one JSON object per line, `image` (a path, relative to the file), `question` (absent: a caption is
// asked for) and `references`, the texts that people wrote.

import { dirname, resolve } from 'node:path';
import { QFormerError } from '../errors.js';
import { isJsonObject, readWholeFile } from '../io/files.js';

/** One line of a data set. */
export interface EvalItem {
  /** Line number, from 1. */
  line: number;
  /** Absolute path. */
  image: string;
  /** As the line says it. */
  name: string;
  question?: string;
  references: string[];
}

const MAX_BYTES = 2 ** 30;

/** The items of a file; empty lines are skipped. Throws IO, and FORMAT naming the line. */
export function readDataset(file: string): EvalItem[] {
  const lines = new TextDecoder().decode(readWholeFile(file, MAX_BYTES)).split('\n');
  const items = lines.flatMap((text, i) => (text.trim() === '' ? [] : [readItem(file, text, i + 1)]));
  if (items.length === 0) throw new QFormerError('FORMAT', `${file}: holds no items`, { file });
  return items;
}

function readItem(file: string, text: string, line: number): EvalItem {
  const fault = (problem: string): QFormerError =>
    new QFormerError('FORMAT', `${file}:${line}: ${problem}`, { file, line });
  const value = parse(text);
  if (!isJsonObject(value)) throw fault('is not a JSON object');
  const { image, question, references } = value;
  if (typeof image !== 'string' || image === '') throw fault('`image` must be a path');
  if (question !== undefined && typeof question !== 'string') throw fault('`question` must be a string');
  const isText = (one: unknown): one is string => typeof one === 'string';
  if (!Array.isArray(references) || references.length === 0 || !references.every(isText)) {
    throw fault('`references` must be a non-empty list of strings');
  }
  const item = { line, image: resolve(dirname(file), image), name: image, references };
  return question === undefined ? item : { ...item, question };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
