// The messages between the main thread and the engine worker. Plain structured-cloneable data only: no classes, no tensors.
// The main side sends requests and aborts; the worker answers with one 'step' message per engine step that carries the
// events of all requests. Types and error (de)serialisation live here; imports nothing but types and the error class.

import { QFormerError, type ErrorCode } from '../errors.js';
import type { AdapterInfo } from '../io/adapter.js';
import type { GenerationDefaults, ModelConfig } from '../io/config.js';
import type { RetrievalConfig } from '../io/retrieval-checkpoint.js';
import type { GenerateParams } from './params.js';
import type { Task, TaskImage, TaskResult } from './task.js';

export type { AdapterInfo } from '../io/adapter.js';

/** Options of the engine, fixed when the worker starts. */
export interface EngineOptions {
  /** Checkpoint folder. */
  dir: string;
  /** Folder of the language model, where `dir` holds only the visual part. */
  languageModel?: string;
  /** 'auto' | 'cpu' | 'cuda' | 'cuda:N'. Default 'auto'. */
  device?: string;
  dtype?: 'auto' | 'f32' | 'f16' | 'bf16';
  /** Linear layers of language model and vision tower as integers with a scale per group of columns. Default: not. */
  quantize?: 'int8' | 'int4';
  /** On the CPU, round what those layers are multiplied with to 8 bits. Default: to 16. */
  quantizeActivations?: boolean;
  /** Threads of the CPU backend. */
  threads?: number;
  /** Size of the KV pool in tokens. Default: context × batch, bounded by a quarter of the free memory. */
  kvCacheTokens?: number;
  /** Element type of the KV pool. Default f32 on the CPU. */
  kvCacheDtype?: 'f32' | 'f16' | 'bf16';
  /** Requests that run at the same time. Default 16. */
  maxBatchSize?: number;
  /** Tokens of one engine step, prefill and decode together. Default 512. */
  maxStepTokens?: number;
  /** Reuse the KV blocks of equal prompt prefixes. Default true. */
  prefixCache?: boolean;
  /** Byte bound of the cache of image features. Default 256 MiB. */
  imageCacheBytes?: number;
  /** Side of the square that images are resized to, pixels; other than the model's, positions are interpolated. */
  imageSize?: number;
  /** Refuse a checkpoint that the device's memory cannot hold. Default true. */
  memoryCheck?: boolean;
}

/** Loading progress. Bytes. */
export interface LoadProgress {
  phase: 'open' | 'weights' | 'ready';
  loaded: number;
  total: number;
}

/** Decoded pixels, rows top to bottom, 3 bytes (RGB) a pixel. */
export interface RequestImage {
  data: Uint8Array;
  width: number;
  height: number;
}

/** One request as the worker receives it. */
export interface EngineRequest {
  /** The whole prompt text, template applied; or ready token ids (image tokens included or not). '' with images: caption. */
  prompt: string | number[];
  images?: TaskImage[];
  /** What an instruction-aware Q-Former reads. Default: the prompt text. */
  instruction?: string;
  /** Texts to score as answers, instead of generating one. */
  candidates?: string[];
  /** Name of a loaded adapter. */
  adapter?: string;
  params?: GenerateParams;
}

/** Log-probabilities of one generated token, from the log-softmax of the raw logits. */
export interface TokenLogprob {
  tokenId: number;
  logprob: number;
  /** The best tokens in descending order, when asked for. */
  top?: { tokenId: number; logprob: number }[];
}

/** A piece of a running answer. `text` may be '' (an unfinished character, or text that may become a stop string). */
export interface Delta {
  text: string;
  tokenIds: number[];
  logprobs?: TokenLogprob[];
}

export type FinishReason = 'stop' | 'length' | 'abort';

export interface Usage {
  /** Prompt tokens, image tokens included. */
  promptTokens: number;
  completionTokens: number;
  /** Prompt tokens whose keys and values came from the prefix cache. */
  cachedTokens: number;
  imageTokens: number;
}

/** All in ms, measured in the worker from the arrival of the request. */
export interface Timings {
  /** Waiting until the first step that ran it. */
  queueMs: number;
  /** Resize, ViT and Q-Former. */
  imageMs: number;
  /** From the first step to the first token, without imageMs. */
  prefillMs: number;
  /** From the first token to the last. */
  decodeMs: number;
  timeToFirstTokenMs: number;
  totalMs: number;
  /** Tokens after the first per second of decodeMs; 0 with fewer than two tokens. */
  tokensPerSecond: number;
}

/** One answer of a beam search. */
export interface Beam {
  text: string;
  /** New tokens only, the end-of-sequence token included. */
  tokenIds: number[];
  /** Sum of the log-probabilities / length ** lengthPenalty, after penalties and bans. */
  score: number;
}

export interface EngineResult {
  text: string;
  /** New tokens only, the end-of-sequence token included. */
  tokenIds: number[];
  finishReason: FinishReason;
  usage: Usage;
  timings: Timings;
  logprobs?: TokenLogprob[];
  /** Of a beam search: the `numReturnSequences` best answers, best first. The first one is `text` and `tokenIds`. */
  beams?: Beam[];
  /** Of a ranking: the candidates in their order, with the log-probability of each token. */
  candidates?: { tokenIds: number[]; logprobs: number[] }[];
  seed: number;
}

/** What the main side knows of the loaded model. */
export interface EngineInfo {
  dir: string;
  /** What the checkpoint is for: writing text, or comparing images with texts. */
  purpose: 'generation' | 'retrieval';
  modelType: string;
  config: ModelConfig | RetrievalConfig;
  generation: GenerationDefaults;
  device: string;
  deviceName: string;
  /** Instruction set or compute capability in use. */
  level: string;
  threads: number;
  dtype: string;
  quantize: 'int8' | 'int4' | 'none';
  /** Bytes of the weights in memory. */
  weightBytes: number;
  kvCacheTokens: number;
  kvCacheBytes: number;
  maxBatchSize: number;
  /** Prompt and answer together, tokens. */
  maxContext: number;
  supportsImages: boolean;
}

/** Counters of the engine, for tests, `doctor` and metrics. */
export interface EngineStats {
  waiting: number;
  running: number;
  steps: number;
  preemptions: number;
  /** Tokens. */
  promptTokens: number;
  generatedTokens: number;
  cachedTokens: number;
  /** Blocks of the KV pool: held by requests; free, but holding a prefix that may be asked for again; all. */
  blocksInUse: number;
  blocksCached: number;
  blocksTotal: number;
  /** Times that a cached block was given up for a new one: from the first on, every block of the pool has been in use. */
  blocksEvicted: number;
  /** Bytes of the image cache. */
  imageCacheBytes: number;
  liveTensors: number;
}

/** Something to do with an adapter; the answer is what is known of it afterwards. */
export type AdapterCommand =
  { action: 'load'; name: string; dir: string } | { action: 'unload' | 'merge' | 'unmerge'; name: string };

export type ToWorker =
  | { type: 'request'; id: number; request: EngineRequest }
  | { type: 'task'; id: number; task: Task }
  | { type: 'adapter'; id: number; command: AdapterCommand }
  /** Undoes one 'hold'. */
  | { type: 'release'; digest: string }
  | { type: 'abort'; id: number }
  | { type: 'stats'; id: number }
  | { type: 'shutdown' };

export type RequestEvent =
  | ({ type: 'delta'; id: number } & Delta)
  | { type: 'end'; id: number; result: EngineResult }
  | { type: 'done'; id: number; result: TaskResult | AdapterInfo }
  | { type: 'error'; id: number; error: SerializedError };

export type FromWorker =
  | { type: 'progress'; progress: LoadProgress }
  | { type: 'ready'; info: EngineInfo }
  | { type: 'failed'; error: SerializedError }
  /** `buffers`: of the pixels of requests that have ended, moved back. */
  | { type: 'step'; events: RequestEvent[]; buffers: ArrayBuffer[] }
  | { type: 'stats'; id: number; stats: EngineStats }
  | { type: 'closed'; liveTensors: number };

/** workerData: the options and an Int32 flag that the main side raises to abort the load. */
export interface WorkerInit {
  options: EngineOptions;
  abortFlag: SharedArrayBuffer;
}

/** An error as plain data. */
export interface SerializedError {
  code: ErrorCode;
  message: string;
  details: Record<string, unknown>;
  stack?: string;
}

/** The buffers that hold the pixels of a request or task, whose fields need not have been checked. */
export function pixelBuffersOf(message: ToWorker): ArrayBuffer[] {
  let images: readonly TaskImage[] = [];
  if (message.type === 'request') images = message.request.images ?? [];
  if (message.type === 'task' && 'image' in message.task) images = [message.task.image];
  const buffers = images.map((image) => 'data' in image && ArrayBuffer.isView(image.data) && image.data.buffer);
  return [...new Set(buffers.filter((buffer) => buffer instanceof ArrayBuffer))];
}

/** An error as plain data; anything but a QFormerError becomes INTERNAL. */
export function serializeError(error: unknown): SerializedError {
  const stack = error instanceof Error ? error.stack : undefined;
  const { code, details } = error as Partial<QFormerError>;
  if (error instanceof Error && error.name === 'QFormerError' && code !== undefined) {
    return { code, message: error.message, details: plain(details), stack };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { code: 'INTERNAL', message, details: {}, stack };
}

/** The QFormerError of a serialised one; its `cause` carries the worker's stack. */
export function deserializeError(error: SerializedError): QFormerError {
  const cause = error.stack === undefined ? undefined : new Error('in the engine worker', { cause: error.stack });
  return new QFormerError(error.code, error.message, error.details, cause === undefined ? undefined : { cause });
}

function plain(details: unknown): Record<string, unknown> {
  try {
    return JSON.parse(JSON.stringify(details ?? {})) as Record<string, unknown>;
  } catch {
    return {};
  }
}
