// The worker thread: loads the engine, then turns messages into requests and steps into one message each. While there is
// work it reads its port without waiting before every step, so that an abort takes effect at the next one; otherwise it
// sleeps. Nothing thrown for a request's sake leaves its handler: it becomes that request's error.

import { parentPort, receiveMessageOnPort, workerData, type MessagePort } from 'node:worker_threads';
import { QFormerError } from '../errors.js';
import { isRetrievalCheckpoint } from '../io/retrieval-checkpoint.js';
import { liveTensors, trimMemory } from '../tensor/index.js';
import type { EngineEvent } from './scheduling/engine.js';
import { loadEngine, type LoadedEngine } from './execution/load.js';
import { loadRetrieval } from './execution/load-retrieval.js';
import {
  pixelBuffersOf,
  serializeError,
  type AdapterCommand,
  type EngineRequest,
  type FromWorker,
  type LoadProgress,
  type RequestEvent,
  type ToWorker,
  type WorkerInit,
} from './protocol.js';
import { cannot, type TaskEvent } from './execution/task-queue.js';

/** Between two progress messages of one phase, ms; the event loop of the main thread is not ours to fill. */
const PROGRESS_MS = 30;
/** How often the abort flag is looked at while loading, ms. */
const ABORT_POLL_MS = 10;
/** Idle this long, the engine gives freed memory back: after a burst the C library holds tens of MiB free. */
const TRIM_AFTER_MS = 400;
/** The garbage collector frees array buffers on a thread of its own; time for that, ms. */
const COLLECTED_AFTER_MS = 100;

class EngineWorker {
  readonly #refused: RequestEvent[] = [];
  /** Of the pixels of each request that has not ended. */
  readonly #buffers = new Map<number, ArrayBuffer[]>();
  #scheduled = false;
  #closed = false;
  #busy = false;
  #trim: NodeJS.Timeout | undefined;

  constructor(
    private readonly port: MessagePort,
    private readonly loaded: LoadedEngine,
  ) {
    this.port.on('message', (message: ToWorker) => {
      this.#receive(message);
      this.#schedule();
    });
  }

  #schedule(): void {
    if (this.#closed || this.#scheduled) return;
    if (!this.#hasWork) return this.#rest();
    this.#busy = this.#scheduled = true;
    setImmediate(() => this.#turn());
  }

  get #hasWork(): boolean {
    const { engine, tasks } = this.loaded;
    return engine?.hasWork === true || tasks.hasWork || this.#refused.length > 0;
  }

  #turn(): void {
    this.#scheduled = false;
    for (let next = receiveMessageOnPort(this.port); next !== undefined; next = receiveMessageOnPort(this.port)) {
      this.#receive(next.message as ToWorker);
    }
    if (this.#closed) return;
    const { engine, tasks } = this.loaded;
    const events = this.#refused.splice(0);
    if (tasks.hasWork) events.push(...tasks.step().map(toMessage));
    if (engine?.hasWork) events.push(...engine.step().map(toMessage));
    const ended = events.filter(({ type }) => type !== 'delta').map(({ id }) => id);
    for (const id of ended) this.loaded.adapters?.ended(id);
    if (events.length > 0) this.#postStep(events, ended);
    this.#schedule();
  }

  #postStep(events: RequestEvent[], ended: readonly number[]): void {
    const buffers = ended.flatMap((id) => this.#buffers.get(id) ?? []);
    for (const id of ended) this.#buffers.delete(id);
    this.#post({ type: 'step', events, buffers }, buffers);
  }

  /** Nothing to do: gives memory back once, unless a request comes first. */
  #rest(): void {
    if (!this.#busy) return;
    this.#busy = false;
    clearTimeout(this.#trim);
    this.#trim = setTimeout(() => !this.#busy && giveMemoryBack(), TRIM_AFTER_MS).unref();
  }

  #receive(message: ToWorker): void {
    const { stats, tasks, engine, features } = this.loaded;
    switch (message.type) {
      case 'request':
      case 'task':
        this.#buffers.set(message.id, pixelBuffersOf(message));
        try {
          if (message.type === 'task') tasks.add(message.id, message.task);
          else this.#generate(message.id, message.request);
        } catch (error) {
          this.#refused.push({ type: 'error', id: message.id, error: serializeError(error) });
        }
        return;
      case 'adapter':
        return this.#command(message.id, message.command);
      case 'release':
        return features?.release(message.digest);
      case 'abort': {
        const event = tasks.abort(message.id);
        if (event !== undefined) this.#refused.push(toMessage(event));
        return engine?.abort(message.id);
      }
      case 'stats':
        return this.#post({ type: 'stats', id: message.id, stats: stats() });
      case 'shutdown':
        return this.#shutdown();
    }
  }

  #generate(id: number, request: EngineRequest): void {
    const { engine, prompts, adapters } = this.loaded;
    if (engine === undefined || prompts === undefined) throw cannot('generate text');
    const adapter = adapters?.started(id, request.adapter);
    try {
      engine.add(prompts.build(id, request, engine.maxContext, performance.now(), adapter));
    } catch (error) {
      adapters?.ended(id);
      throw error;
    }
  }

  #command(id: number, command: AdapterCommand): void {
    try {
      const { adapters } = this.loaded;
      if (adapters === undefined) throw cannot('take adapters');
      this.#refused.push({ type: 'done', id, result: adapters.run(command) });
    } catch (error) {
      this.#refused.push({ type: 'error', id, error: serializeError(error) });
    }
  }

  #shutdown(): void {
    clearTimeout(this.#trim);
    this.loaded.dispose();
    this.#post({ type: 'closed', liveTensors: liveTensors() });
    this.#closed = true;
    this.port.close();
  }

  #post(message: FromWorker, transfer: ArrayBuffer[] = []): void {
    this.port.postMessage(message, transfer);
  }
}

/** Where Node runs with --expose-gc, as for measurements, what pixels and events have left is collected before. */
function giveMemoryBack(): void {
  globalThis.gc?.();
  setTimeout(trimMemory, COLLECTED_AFTER_MS).unref();
}

function toMessage(event: EngineEvent | TaskEvent): RequestEvent {
  return event.type === 'error' ? { ...event, error: serializeError(event.error) } : event;
}

/** Posts progress, not more often than every PROGRESS_MS but always the last of a phase. */
function progressPoster(port: MessagePort): (progress: LoadProgress) => void {
  let last = -Infinity;
  return (progress) => {
    const now = performance.now();
    if (progress.phase === 'weights' && progress.loaded < progress.total && now - last < PROGRESS_MS) return;
    last = now;
    port.postMessage({ type: 'progress', progress } satisfies FromWorker);
  };
}

async function main(port: MessagePort, { options, abortFlag }: WorkerInit): Promise<void> {
  const flag = new Int32Array(abortFlag);
  const controller = new AbortController();
  const poll = setInterval(() => Atomics.load(flag, 0) !== 0 && controller.abort(), ABORT_POLL_MS);
  try {
    const { signal } = controller;
    const load = isRetrievalCheckpoint(options.dir) ? loadRetrieval : loadEngine;
    const loaded = await load(options, { signal, onProgress: progressPoster(port) });
    if (Atomics.load(flag, 0) !== 0) {
      loaded.dispose();
      throw new QFormerError('ABORTED', 'loading was aborted');
    }
    new EngineWorker(port, loaded);
    port.postMessage({ type: 'ready', info: loaded.info } satisfies FromWorker);
  } catch (error) {
    port.postMessage({ type: 'failed', error: serializeError(error) } satisfies FromWorker);
    port.close();
  } finally {
    clearInterval(poll);
  }
}

if (parentPort === null) throw new QFormerError('INTERNAL', 'this file is the engine worker, not a module to import');
void main(parentPort, workerData as WorkerInit);
