// The only importer of native code: finds the addon (local build or prebuild) and types its functions.
// Tensors, graphs and files cross the boundary as integer handles; 0 stands for "none".

import { createRequire } from 'node:module';
import { QFormerError } from '../errors.js';
import { packageRoot } from '../package-root.js';
import type { Dtype } from './dtype.js';

export type Handle = number;
export type TypedArray = Float32Array | Int32Array | Uint16Array | Uint8Array;

/** One entry of {@link devices}. */
export interface DeviceInfo {
  /** Name to pass as `device`, e.g. `cpu`. */
  name: string;
  /** What it is, e.g. the processor's name. */
  device: string;
  /** Instruction set or compute capability in use. */
  level: string;
  /** Bytes in all. */
  memory: number;
  /** Bytes free now. */
  freeMemory: number;
  /** Threads that ops may use (CPU). */
  threads: number;
  /** Dtypes that ops compute in: f32, and on GPUs f16 and bf16. */
  activationDtypes: Dtype[];
}

/** A kind of device that is not used here; see {@link unusedDevices}. */
export interface UnusedDevice {
  device: string;
  /** Why, in one sentence. */
  reason: string;
}

/** The addon's functions. Arguments are checked natively; see `csrc/ops/ops.h`. */
export interface Native {
  create(shape: readonly number[], dtype: number, device: string, zeroed: number): Handle;
  fromData(data: TypedArray, shape: readonly number[], dtype: number, device: string): Handle;
  write(x: Handle, data: TypedArray): void;
  read(x: Handle): TypedArray;
  shapeOf(x: Handle): number[];
  dtypeOf(x: Handle): number;
  deviceOf(x: Handle): string;
  isDense(x: Handle): number;
  isLive(x: Handle): number;
  dispose(x: Handle): void;
  liveTensors(): number;
  reshape(x: Handle, shape: readonly number[]): Handle;
  slice(x: Handle, axis: number, start: number, end: number): Handle;
  select(x: Handle, axis: number, index: number): Handle;
  transpose(x: Handle, axisA: number, axisB: number): Handle;
  openScope(): number;
  closeScope(kept: readonly Handle[]): void;
  keep(x: Handle): void;

  graphBegin(): Handle;
  graphEnd(graph: Handle): void;
  graphReplay(graph: Handle): void;
  graphOps(graph: Handle): number;
  graphDispose(graph: Handle): void;
  fileOpen(path: string): Handle;
  fileSize(file: Handle): number;
  fileBytes(file: Handle, offset: number, length: number): Uint8Array;
  fileTensor(file: Handle, offset: number, shape: readonly number[], dtype: number, device: string): Handle;
  fileClose(file: Handle): void;
  listDevices(all: number): DeviceInfo[];
  listUnusedDevices(): UnusedDevice[];
  setThreads(threads: number): void;
  getThreads(): number;
  trimMemory(): void;
  setErrorClass(errorClass: unknown): void;

  linear(
    ...args: [
      x: Handle,
      w: Handle,
      bias: Handle,
      residual: Handle,
      normWeight: Handle,
      normEps: number,
      activation: number,
      math: number,
      yDtype: number,
    ]
  ): Handle;
  gatedLinear(
    ...args: [
      x: Handle,
      wGate: Handle,
      wUp: Handle,
      normWeight: Handle,
      normEps: number,
      activation: number,
      math: number,
    ]
  ): Handle;
  qkvAppend(
    ...args: [
      x: Handle,
      normWeight: Handle,
      wq: Handle,
      wk: Handle,
      wv: Handle,
      positions: Handle,
      invFreq: Handle,
      kCache: Handle,
      vCache: Handle,
      slotMapping: Handle,
      normEps: number,
      math: number,
    ]
  ): Handle;
  quantize(w: Handle, bits: number, group: number): [q: Handle, scales: Handle];
  quantLinear(
    ...args: [
      x: Handle,
      q: Handle,
      scales: Handle,
      bias: Handle,
      residual: Handle,
      normWeight: Handle,
      normEps: number,
      activation: number,
      math: number,
      yDtype: number,
    ]
  ): Handle;
  loraApply(y: Handle, x: Handle, a: Handle, b: Handle, scaling: Handle, adapters: Handle): void;
  qformerCrossAttention(
    ...args: [
      x: Handle,
      wq: Handle,
      bq: Handle,
      k: Handle,
      v: Handle,
      wo: Handle,
      bo: Handle,
      normWeight: Handle,
      normBias: Handle,
      numQuery: number,
      scale: number,
      normEps: number,
      math: number,
    ]
  ): Handle;
  loraMerge(w: Handle, a: Handle, b: Handle, scaling: number): Handle;
  layerNorm(x: Handle, weight: Handle, bias: Handle, eps: number): Handle;
  rmsNorm(x: Handle, weight: Handle, eps: number): Handle;
  softmax(x: Handle, log: number): Handle;
  rope(x: Handle, positions: Handle, invFreq: Handle): Handle;
  attention(
    ...args: [
      q: Handle,
      k: Handle,
      v: Handle,
      cuSeqlensQ: Handle,
      cuSeqlensK: Handle,
      bias: Handle,
      biasOrigin: number,
      scale: number,
      mask: number,
      numQuery: number,
      math: number,
    ]
  ): Handle;
  kvAppend(k: Handle, v: Handle, kCache: Handle, vCache: Handle, slotMapping: Handle): void;
  pagedAttention(
    ...args: [
      q: Handle,
      kCache: Handle,
      vCache: Handle,
      cuSeqlensQ: Handle,
      blockTable: Handle,
      contextLens: Handle,
      bias: Handle,
      biasOrigin: number,
      scale: number,
      math: number,
    ]
  ): Handle;
  embedding(ids: Handle, table: Handle, dtype: number): Handle;
  gatherRows(x: Handle, ids: Handle): Handle;
  scatterRows(dst: Handle, ids: Handle, src: Handle): void;
  binary(a: Handle, b: Handle, op: number): Handle;
  unary(x: Handle, activation: number, scale: number, shift: number): Handle;
  cast(x: Handle, dtype: number): Handle;
  copyInto(dst: Handle, src: Handle): void;
  resizeBicubic(x: Handle, outHeight: number, outWidth: number): Handle;
  normalizeImage(x: Handle, rescale: number, mean: readonly number[], std: readonly number[]): Handle;
  patchEmbedding(
    ...args: [
      x: Handle,
      w: Handle,
      bias: Handle,
      classEmbedding: Handle,
      positions: Handle,
      dtype: number,
      math: number,
    ]
  ): Handle;
  penalizeLogits(
    ...args: [
      logits: Handle,
      history: Handle,
      cuHistory: Handle,
      banned: Handle,
      cuBanned: Handle,
      repetitionPenalty: Handle,
    ]
  ): void;
  warpLogits(
    ...args: [logits: Handle, temperature: Handle, topK: Handle, topP: Handle, minP: Handle, minTokensToKeep: number]
  ): Handle;
  sample(scores: Handle, temperature: Handle, seed: Handle, step: Handle): Handle;
  topK(x: Handle, k: number): [values: Handle, ids: Handle];
}

function load(): Native {
  const require = createRequire(import.meta.url);
  const root = packageRoot();
  try {
    const nodeGypBuild = require('node-gyp-build') as (dir: string) => Native;
    return nodeGypBuild(root);
  } catch (cause) {
    throw new QFormerError(
      'IO',
      `no native addon for ${process.platform}-${process.arch} in ${root}: ` +
        `build it with 'npm run build:native' there (needs cmake and a C++20 compiler), or run 'npm rebuild qformer'`,
      { platform: process.platform, arch: process.arch },
      { cause },
    );
  }
}

// Copied, because V8 keeps an addon's exports in a hash table; a plain object's functions it finds without a lookup.
export const native: Native = { ...load() };
native.setErrorClass(QFormerError);
