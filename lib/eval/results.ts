// The results of an evaluation on disk, one JSON object per line, written as they come, so that a run which was killed goes on
// where it stopped. The first line says what made them: results of two models or of other options are never mixed.

import { appendFileSync, truncateSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { QFormerError } from '../errors.js';
import { fileExists, ioError, readWholeFile } from '../io/files.js';

/** What made the results: digest of the model, options of the requests. */
export interface ResultsHeader {
  format: 'qformer-eval';
  version: 1;
  model: string;
  options: Record<string, unknown>;
}

/** The answer to one line of the data set. */
export interface EvalResult {
  line: number;
  image: string;
  question?: string;
  text: string;
}

const MAX_BYTES = 2 ** 30;

/** A file of results that grows. */
export class ResultsFile {
  readonly #byLine = new Map<number, EvalResult>();

  private constructor(private readonly file: string) {}

  /**
   * Opens `file` or begins it. A last line that was cut off is removed. Throws IO, FORMAT (a damaged line) and INVALID_ARGUMENT
   * (results of another model or of other options).
   */
  static open(file: string, header: ResultsHeader): ResultsFile {
    const results = new ResultsFile(file);
    const lines = fileExists(file) ? results.#wholeLines() : [];
    if (lines.length === 0) results.#append(header);
    else results.#read(lines, header);
    return results;
  }

  /** The result of a line, if it is there and about the same image and question. */
  get({ line, image, question }: Omit<EvalResult, 'text'>): EvalResult | undefined {
    const result = this.#byLine.get(line);
    return result?.image === image && result.question === question ? result : undefined;
  }

  add(result: EvalResult): void {
    this.#append(result);
    this.#byLine.set(result.line, result);
  }

  #append(value: object): void {
    try {
      appendFileSync(this.file, `${JSON.stringify(value)}\n`);
    } catch (error) {
      throw ioError(this.file, error);
    }
  }

  #wholeLines(): string[] {
    const bytes = readWholeFile(this.file, MAX_BYTES);
    const end = bytes.lastIndexOf(10) + 1;
    if (end < bytes.length) truncateSync(this.file, end);
    return new TextDecoder().decode(bytes.subarray(0, end)).split('\n').slice(0, -1);
  }

  #read(lines: readonly string[], header: ResultsHeader): void {
    const [found, ...results] = lines.map((text, i) => this.#parse(text, i + 1));
    const { model, options } = found as Partial<ResultsHeader>;
    if ((found as Partial<ResultsHeader>).format !== header.format) throw this.#fault(1, 'is not the head of results');
    if (!isDeepStrictEqual(found, JSON.parse(JSON.stringify(header)))) {
      const what = model === header.model ? 'other options' : 'another model';
      const message = `${this.file}: holds results of ${what}; name another file, or remove it to begin again`;
      throw new QFormerError('INVALID_ARGUMENT', message, {
        file: this.file,
        found: options,
        expected: header.options,
      });
    }
    results.forEach((result, i) => {
      const { line, text, image } = result as Partial<EvalResult>;
      if (!Number.isSafeInteger(line) || typeof text !== 'string' || typeof image !== 'string') {
        throw this.#fault(i + 2, 'is not a result');
      }
      this.#byLine.set(line!, result as EvalResult);
    });
  }

  #parse(text: string, line: number): object {
    try {
      const value: unknown = JSON.parse(text);
      if (typeof value === 'object' && value !== null) return value;
    } catch {
      // below
    }
    throw this.#fault(line, 'is not a JSON object');
  }

  #fault(line: number, problem: string): QFormerError {
    return new QFormerError('FORMAT', `${this.file}:${line}: ${problem}`, { file: this.file, line });
  }
}
