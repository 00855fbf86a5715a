// One running request as the caller sees it: awaitable for the whole answer, async-iterable for its pieces, both at once.
// The request starts when the object is made, not when it is awaited. Pieces are kept, so an iterator that starts late
// still sees all of them; leaving a loop (break, return, throw) cancels the request and frees its place in the batch.

import type { Delta, EngineResult } from './engine/protocol.js';

/** A piece of the answer. `text` never ends inside a character; it is '' while one is incomplete. */
export type GenerationChunk = Delta;

/** What a finished request returns. `abort` as its `finishReason` means that the reader left the loop. */
export type GenerationResult = EngineResult;

/** Runs a request: calls `emit` per piece and resolves with the result; `cancel` fires when the reader leaves the loop. */
export type RunRequest = (emit: (chunk: GenerationChunk) => void, cancel: AbortSignal) => Promise<GenerationResult>;

/** A running request. `await` it for the result, or `for await` its pieces. */
export class Generation implements Promise<GenerationResult>, AsyncIterable<GenerationChunk> {
  readonly [Symbol.toStringTag] = 'Generation';
  readonly #chunks: GenerationChunk[] = [];
  readonly #cancel = new AbortController();
  readonly #result: Promise<GenerationResult>;
  #settled = false;
  #waiting: (() => void)[] = [];

  /** Starts `run` at once. Made by the methods of Model and Chat, not by users. */
  constructor(run: RunRequest) {
    this.#result = this.#run(run);
    // A caller who only iterates sees the error in the loop; the promise nobody awaited must not end the process.
    this.#result.catch(() => undefined);
  }

  /** Ends the request early: it resolves with what there is and finishReason `abort`. Does nothing once it has ended. */
  cancel(): void {
    if (!this.#settled) this.#cancel.abort();
  }

  then<A = GenerationResult, B = never>(
    onFulfilled?: ((result: GenerationResult) => A | PromiseLike<A>) | null,
    onRejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#result.then(onFulfilled, onRejected);
  }

  catch<B = never>(onRejected?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<GenerationResult | B> {
    return this.#result.catch(onRejected);
  }

  finally(onFinally?: (() => void) | null): Promise<GenerationResult> {
    return this.#result.finally(onFinally);
  }

  /** Yields every piece from the first one on. Throws what the request throws; leaving the loop cancels it. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GenerationChunk, void, undefined> {
    try {
      for (let next = 0; ;) {
        while (next < this.#chunks.length) yield this.#chunks[next++]!;
        if (this.#settled) break;
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
      await this.#result;
    } finally {
      // Waiting for the end here means that after the loop the request no longer holds anything.
      this.cancel();
      await this.#result.catch(() => undefined);
    }
  }

  async #run(run: RunRequest): Promise<GenerationResult> {
    const emit = (chunk: GenerationChunk) => {
      this.#chunks.push(chunk);
      this.#wake();
    };
    try {
      return await run(emit, this.#cancel.signal);
    } finally {
      this.#settled = true;
      this.#wake();
    }
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
