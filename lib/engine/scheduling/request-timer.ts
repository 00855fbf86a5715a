// When the stages of one request began, from which its timings follow. Shared by all sequences of a request.

import type { Timings } from '../protocol.js';

/** Clock readings of one request, ms. */
export class RequestTimer {
  /** Time spent on its images, ms; the runner adds to it. */
  imageMs = 0;
  #started: number | undefined;
  #firstToken: number | undefined;
  #lastToken: number | undefined;

  constructor(private readonly arrival: number) {}

  /** Notes the first step that runs the request; false for a later one. */
  start(now: number): boolean {
    if (this.#started !== undefined) return false;
    this.#started = now;
    return true;
  }

  /** Notes a token. */
  token(now: number): void {
    this.#firstToken ??= now;
    this.#lastToken = now;
  }

  /** Of a request with `generated` tokens that ends now. */
  timings(generated: number, now: number): Timings {
    const started = this.#started ?? now;
    const first = this.#firstToken ?? now;
    const last = this.#lastToken ?? now;
    const decodeMs = last - first;
    const decoded = generated - 1;
    return {
      queueMs: started - this.arrival,
      imageMs: this.imageMs,
      prefillMs: Math.max(0, first - started - this.imageMs),
      decodeMs,
      timeToFirstTokenMs: first - this.arrival,
      totalMs: now - this.arrival,
      tokensPerSecond: decoded > 0 && decodeMs > 0 ? (decoded * 1000) / decodeMs : 0,
    };
  }
}
