// The main thread's end of the engine: starts the worker, sends requests, routes events to callbacks and promises.
// Never loads native code. An idle worker is unreferenced, so a forgotten dispose() does not keep the process alive.
// If the worker dies, every pending request rejects and later ones are refused; the process lives on.

import { Worker } from 'node:worker_threads';
import { QFormerError } from '../errors.js';
import { PixelBuffers } from '../io/pixel-buffers.js';
import {
  deserializeError,
  pixelBuffersOf,
  type AdapterCommand,
  type Delta,
  type EngineInfo,
  type EngineOptions,
  type EngineRequest,
  type EngineResult,
  type EngineStats,
  type FromWorker,
  type LoadProgress,
  type RequestEvent,
  type ToWorker,
  type WorkerInit,
} from './protocol.js';
import type { AdapterInfo } from './protocol.js';
import type { Task, TaskResult } from './task.js';

/** Options of EngineClient.start: the engine's, and what concerns loading. */
export interface ClientOptions extends EngineOptions {
  /** Aborts the load; start() rejects with ABORTED. */
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
  /** The worker file. Default: worker.js / worker.cjs beside this bundle. */
  workerUrl?: URL;
}

export interface SubmitOptions {
  /** Called once per engine step that produced something for this request; what it throws ends the request. */
  onDelta?: (delta: Delta) => void;
  /** The buffers of pixels are moved to the worker instead of copied; the caller's arrays become empty. */
  transferImages?: boolean;
}

/** A running request. */
export interface RequestHandle {
  readonly id: number;
  /**
   * Settles when the request ends. After abort(): resolves with finishReason 'abort' and what was generated so far.
   * Rejects with the request's own error, or ABORTED / INTERNAL when the engine was closed / died. Never unhandled.
   */
  readonly done: Promise<EngineResult>;
  /** Takes effect at the next engine step; does nothing once the request has ended. */
  abort(): void;
}

/** A running task. */
export interface TaskHandle {
  /** As `RequestHandle.done`, but rejects with ABORTED after abort(). */
  readonly done: Promise<TaskResult>;
  /** Takes effect before the next batch of tasks; does nothing once the task has ended. */
  abort(): void;
}

type Answer = EngineResult | TaskResult | AdapterInfo;

interface Pending {
  onDelta?: ((delta: Delta) => void) | undefined;
  resolve(result: Answer): void;
  reject(error: unknown): void;
}

/** How long a worker may take to leave after it was asked to, before it is terminated, ms. */
const GRACE_MS = 5000;

/** An engine in its worker. */
export class EngineClient {
  readonly info!: EngineInfo;
  /** Where images for this engine are decoded to: the worker gives the memory back when a request ends. */
  readonly pixelBuffers = new PixelBuffers();
  readonly #worker: Worker;
  readonly #abortFlag = new SharedArrayBuffer(4);
  readonly #pending = new Map<number, Pending>();
  readonly #stats = new Map<number, { resolve(stats: EngineStats): void; reject(error: QFormerError): void }>();
  readonly #onProgress: ((progress: LoadProgress) => void) | undefined;
  #nextId = 1;
  #failure: QFormerError | undefined;
  #closing: Promise<{ liveTensors: number }> | undefined;
  #closed: ((liveTensors: number) => void) | undefined;
  #started: { resolve(info: EngineInfo): void; reject(error: unknown): void } | undefined;
  readonly #exited: Promise<void>;

  private constructor(options: ClientOptions) {
    const { signal: _signal, onProgress, workerUrl, ...engine } = options;
    this.#onProgress = onProgress;
    const workerData: WorkerInit = { options: engine, abortFlag: this.#abortFlag };
    // No flags are inherited: with --input-type, for one, a worker does not start from a file.
    const workerOptions = { workerData, name: 'qformer-engine', execArgv: [] };
    this.#worker = new Worker(workerUrl ?? defaultWorkerUrl(), workerOptions);
    this.#exited = new Promise((resolve) => this.#worker.once('exit', () => resolve()));
    this.#worker.on('message', (message: FromWorker) => this.#receive(message));
    this.#worker.on('messageerror', (error) => this.#fail(wrap('the engine worker sent an unreadable message', error)));
    this.#worker.on('error', (error) => this.#fail(wrap('the engine worker failed', error)));
    this.#worker.on('exit', (code) =>
      this.#fail(new QFormerError('INTERNAL', `the engine worker exited with code ${code}`)),
    );
  }

  /** Starts a worker and loads the checkpoint. Errors: IO, FORMAT, UNSUPPORTED, DEVICE, OUT_OF_MEMORY, ABORTED. */
  static async start(options: ClientOptions): Promise<EngineClient> {
    const { signal } = options;
    if (signal?.aborted) throw aborted(signal);
    const client = new EngineClient(options);
    const ready = new Promise<EngineInfo>((resolve, reject) => {
      client.#started = { resolve, reject };
    });
    const onAbort = (): void => {
      Atomics.store(new Int32Array(client.#abortFlag), 0, 1);
      void client.#leave();
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      const info = await ready;
      if (signal?.aborted) throw aborted(signal);
      Object.assign(client, { info });
      client.#worker.unref();
      return client;
    } catch (error) {
      Atomics.store(new Int32Array(client.#abortFlag), 0, 1);
      client.#failure ??= error as QFormerError;
      // A worker that had become ready meanwhile looks at its messages, not at the flag.
      client.#send({ type: 'shutdown' });
      await client.#leave();
      throw signal?.aborted ? aborted(signal) : error;
    } finally {
      signal?.removeEventListener('abort', onAbort);
      client.#started = undefined;
    }
  }

  /** Why the engine can take no more requests; undefined while it can. */
  get failure(): QFormerError | undefined {
    return this.#failure;
  }

  /** Requests that have not ended. */
  get pendingRequests(): number {
    return this.#pending.size;
  }

  /** Sends a request. Throws ABORTED / INTERNAL when the engine is closed / died; everything else rejects `done`. */
  submit(request: EngineRequest, options: SubmitOptions = {}): RequestHandle {
    return this.#start((id) => ({ type: 'request', id, request }), options);
  }

  /** Starts a task, whose pixels are moved to the worker. Throws as `submit`. */
  run(task: Task): TaskHandle {
    return this.#start((id) => ({ type: 'task', id, task }), { transferImages: true });
  }

  /** Undoes one 'hold' task; later requests may still find the image in the cache. */
  release(digest: string): void {
    if (this.#failure === undefined) this.#send({ type: 'release', digest });
  }

  /** Does something with an adapter. Rejects with the worker's error; throws as `submit`. */
  adapter(command: AdapterCommand): Promise<AdapterInfo> {
    return this.#start<AdapterInfo>((id) => ({ type: 'adapter', id, command })).done;
  }

  #start<Result extends Answer>(
    messageOf: (id: number) => ToWorker,
    { onDelta, transferImages = false }: SubmitOptions = {},
  ): { id: number; done: Promise<Result>; abort(): void } {
    if (this.#failure !== undefined) throw this.#failure;
    const id = this.#nextId++;
    const message = messageOf(id);
    this.#send(message, transferImages ? pixelBuffersOf(message) : []);
    const done = new Promise<Result>((resolve, reject) => {
      this.#pending.set(id, { onDelta, resolve: resolve as Pending['resolve'], reject });
    });
    done.catch(() => {});
    this.#hold();
    return { id, done, abort: () => this.#pending.has(id) && this.#send({ type: 'abort', id }) };
  }

  /** The engine's counters. */
  stats(): Promise<EngineStats> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#stats.set(id, { resolve, reject });
      this.#hold();
      this.#send({ type: 'stats', id });
    });
  }

  /**
   * Ends all requests (they reject with ABORTED), frees everything in the worker and waits for it to exit. May be called again.
   * Resolves with the number of tensors that were still alive: 0 unless something leaks; -1 if the worker had to be terminated.
   */
  close(): Promise<{ liveTensors: number }> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<{ liveTensors: number }> {
    const dead = this.#failure !== undefined;
    this.#fail(new QFormerError('ABORTED', 'the model was disposed'));
    if (dead) {
      await this.#exited;
      return { liveTensors: 0 };
    }
    const liveTensors = new Promise<number>((resolve) => {
      this.#closed = resolve;
    });
    this.#worker.ref();
    this.#send({ type: 'shutdown' });
    const left = this.#leave().then(() => -1);
    const result = await Promise.race([liveTensors, left]);
    await left;
    return { liveTensors: result };
  }

  /** Waits for the worker to exit by itself and terminates it after the grace time. */
  async #leave(): Promise<void> {
    const timer = setTimeout(() => void this.#worker.terminate(), GRACE_MS);
    await this.#exited;
    clearTimeout(timer);
  }

  #send(message: ToWorker, transfer: ArrayBuffer[] = []): void {
    this.#worker.postMessage(message, transfer);
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case 'progress':
        return this.#progress(message.progress);
      case 'ready':
        return this.#started?.resolve(message.info);
      case 'failed':
        return this.#started?.reject(deserializeError(message.error));
      case 'step':
        this.pixelBuffers.giveBack(message.buffers);
        for (const event of message.events) this.#dispatch(event);
        return this.#hold();
      case 'stats':
        this.#stats.get(message.id)?.resolve(message.stats);
        this.#stats.delete(message.id);
        return this.#hold();
      case 'closed':
        return this.#closed?.(message.liveTensors);
    }
  }

  #progress(progress: LoadProgress): void {
    try {
      this.#onProgress?.(progress);
    } catch (error) {
      this.#started?.reject(error); // the caller's own error, as it is
    }
  }

  #dispatch(event: RequestEvent): void {
    const pending = this.#pending.get(event.id);
    if (pending === undefined) return;
    if (event.type === 'delta') return this.#deliver(event, pending);
    this.#pending.delete(event.id);
    if (event.type === 'end' || event.type === 'done') pending.resolve(event.result);
    else pending.reject(deserializeError(event.error));
  }

  /** A callback that throws ends its request with what it threw. */
  #deliver({ id, text, tokenIds, logprobs }: Delta & { id: number }, pending: Pending): void {
    try {
      pending.onDelta?.(logprobs === undefined ? { text, tokenIds } : { text, tokenIds, logprobs });
    } catch (error) {
      this.#pending.delete(id);
      this.#send({ type: 'abort', id });
      pending.reject(error);
    }
  }

  /** Keeps the process alive exactly while something is pending. */
  #hold(): void {
    if (this.#pending.size + this.#stats.size > 0) this.#worker.ref();
    else if (this.#closing === undefined) this.#worker.unref();
  }

  #fail(error: QFormerError): void {
    this.#failure ??= error;
    this.#started?.reject(this.#failure);
    for (const pending of this.#pending.values()) pending.reject(this.#failure);
    for (const waiting of this.#stats.values()) waiting.reject(this.#failure);
    this.#pending.clear();
    this.#stats.clear();
  }
}

/** worker.js beside an ES module bundle, worker.cjs beside a CommonJS one; from source, the built one. */
function defaultWorkerUrl(): URL {
  const here = import.meta.url;
  if (here.endsWith('.ts')) return new URL('../../dist/worker.js', here);
  return new URL(here.endsWith('.cjs') ? './worker.cjs' : './worker.js', here);
}

function aborted(signal: AbortSignal): QFormerError {
  return new QFormerError('ABORTED', 'loading was aborted', {}, { cause: signal.reason });
}

function wrap(what: string, error: unknown): QFormerError {
  const message = error instanceof Error ? error.message : String(error);
  return new QFormerError('INTERNAL', `${what}: ${message}`, {}, { cause: error });
}
