// Assertion for coded errors.

import { expect } from 'vitest';

import { isQFormerError, type ErrorCode, type QFormerError } from '../../lib/errors.js';

/** Expects `run` to throw a QFormerError with `code` whose message matches `message`; returns it. */
export function expectError(run: () => unknown, code: ErrorCode, message: RegExp | string): QFormerError {
  let thrown: unknown;
  try {
    run();
  } catch (error) {
    thrown = error;
  }
  return checkError(thrown, code, message);
}

/** As `expectError` for a promise that must reject. */
export async function expectRejection(
  promise: Promise<unknown>,
  code: ErrorCode,
  message: RegExp | string,
): Promise<QFormerError> {
  const thrown = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  return checkError(thrown, code, message);
}

function checkError(thrown: unknown, code: ErrorCode, message: RegExp | string): QFormerError {
  expect(thrown, 'nothing was thrown').toBeDefined();
  if (!isQFormerError(thrown)) throw thrown;
  expect(thrown.message).toMatch(message);
  expect(thrown.code).toBe(code);
  return thrown;
}
