// The one error class of the library. Codes are stable and part of the public API; messages are for people.

/** Stable error codes. */
export type ErrorCode =
  | 'INVALID_ARGUMENT' // a value is of the wrong type or out of range
  | 'SHAPE' // tensor shapes do not fit together
  | 'DTYPE' // an element type is not accepted here
  | 'DEVICE' // a device is missing, or tensors live on different ones
  | 'STALE_TENSOR' // the tensor was disposed
  | 'OUT_OF_MEMORY' // details: requested, free (bytes)
  | 'UNSUPPORTED' // known, but not implemented
  | 'CUDA' // a device fault
  | 'IO' // a file cannot be read
  | 'FORMAT' // a file's content is wrong
  | 'ABORTED' // the caller's AbortSignal fired, or the model was disposed
  | 'INTERNAL'; // a bug in this library

/** Every error thrown by qformer. `details` holds machine-readable fields, e.g. `{ option: 'maxTokens', allowed: [...] }`. */
export class QFormerError extends Error {
  override readonly name = 'QFormerError';

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly details: Readonly<Record<string, unknown>> = {},
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}

/** True for a QFormerError of either module format (ESM and CommonJS copies are different classes). */
export function isQFormerError(error: unknown): error is QFormerError {
  return error instanceof Error && error.name === 'QFormerError' && typeof (error as QFormerError).code === 'string';
}

/** Throws INVALID_ARGUMENT for every key of `options` that is not in `allowed`, naming it and the closest allowed name. */
export function checkOptions(where: string, options: unknown, allowed: readonly string[]): void {
  if (options === undefined) return;
  if (options === null || typeof options !== 'object' || Array.isArray(options)) {
    throw new QFormerError('INVALID_ARGUMENT', `${where}: options must be an object, got ${describe(options)}`);
  }
  for (const key of Object.keys(options)) {
    if (allowed.includes(key)) continue;
    const near = nearest(key, allowed);
    const hint = near === undefined ? `known: ${allowed.join(', ')}` : `did you mean '${near}'?`;
    throw new QFormerError('INVALID_ARGUMENT', `${where}: unknown option '${key}' (${hint})`, { option: key, allowed });
  }
}

/** A short description of a value for messages: type, and the value itself where that is short. */
export function describe(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === 'string') return value.length > 40 ? `'${value.slice(0, 40)}…'` : `'${value}'`;
  if (typeof value === 'object') return `an object (${value.constructor?.name ?? 'no prototype'})`;
  return typeof value === 'function' ? 'a function' : String(value);
}

function nearest(word: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      next[j] = Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + cost);
    }
    row = next;
  }
  return row[b.length]!;
}
