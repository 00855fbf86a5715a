// Checkpoint folder → running engine: opens, maps, builds, sizes the KV pool. What it made is freed in reverse order, also
// when loading fails half way. Runs in the worker; tests run it on their own thread.

import { cpus } from 'node:os';
import { QFormerError, describe } from '../../errors.js';
import { openCheckpoint, type Checkpoint, type CheckpointFiles } from '../../io/checkpoint.js';
import type { ModelConfig, PreprocessorConfig } from '../../io/config.js';
import { DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_CACHE_BYTES, kvBudget, weightBytes } from '../../io/memory-estimate.js';
import { storedDtype } from '../../models/activations.js';
import { AdapterSet } from '../../models/adapters.js';
import type { VisionLanguageModel } from '../../models/model.js';
import { createModel } from '../../models/registry.js';
import { Weights, type WeightsOptions } from '../../models/weights.js';
import { devices, getThreads, liveTensors, setThreads, unusedDevices, type DeviceInfo } from '../../tensor/index.js';
import { AdapterCommands } from './adapter-commands.js';
import { Engine } from '../scheduling/engine.js';
import { ImageEncoder } from './image-encoder.js';
import type { ImageFeatures } from './image-features.js';
import { KvPool } from './kv-pool.js';
import { freeBytes, requireMemory } from './memory-check.js';
import { PromptBuilder } from './prompt.js';
import type { EngineInfo, EngineOptions, EngineStats, LoadProgress } from '../protocol.js';
import { ModelRunner } from './runner.js';
import { TaskQueue } from './task-queue.js';

const DEFAULT_STEP_TOKENS = 512;

/** An engine with everything it stands on; a retrieval model has tasks only. */
export interface LoadedEngine {
  engine: Engine | undefined;
  prompts: PromptBuilder | undefined;
  /** Absent in a text-only model. */
  features: ImageFeatures | undefined;
  tasks: TaskQueue;
  /** Absent in a retrieval model. */
  adapters?: AdapterCommands;
  info: EngineInfo;
  stats(): EngineStats;
  dispose(): void;
}

/** What a load reports to, and what ends it. */
export interface LoadCallbacks {
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
}

/** Loads `options.dir`. Errors: INVALID_ARGUMENT, IO, FORMAT, UNSUPPORTED, DEVICE, OUT_OF_MEMORY, ABORTED. */
export async function loadEngine(
  options: EngineOptions,
  { signal, onProgress }: LoadCallbacks = {},
): Promise<LoadedEngine> {
  const limits = checkLimits(options);
  const device = chooseDevice(options.device ?? 'auto');
  if (options.threads !== undefined) setThreads(options.threads);
  const checkpoint = openCheckpoint(options.dir, options);
  withImageSize(checkpoint, options);
  requireMemory(checkpoint, options, device);
  onProgress?.({ phase: 'open', loaded: 0, total: checkpoint.bytes });
  const prompts = new PromptBuilder(checkpoint);
  const weights = new Weights(checkpoint, weightsOptions(options, device));
  const model = createModel(checkpoint, weights);
  await weights.load({
    ...(signal && { signal }),
    onProgress: ({ loaded, total }) => onProgress?.({ phase: 'weights', loaded, total }),
  });
  const disposers = [() => model.dispose()];
  try {
    const loaded = assemble(options, limits, checkpoint, model, weights, device, disposers);
    onProgress?.({ phase: 'ready', loaded: checkpoint.bytes, total: checkpoint.bytes });
    return { ...loaded, prompts, dispose: () => disposeAll(disposers) };
  } catch (error) {
    disposeAll(disposers);
    throw error;
  }
}

interface Limits {
  maxBatchSize: number;
  maxStepTokens: number;
  imageCacheBytes: number;
}

function assemble(
  options: EngineOptions,
  limits: Limits,
  checkpoint: Checkpoint,
  model: VisionLanguageModel,
  weights: Weights,
  device: DeviceInfo,
  disposers: (() => void)[],
): Omit<LoadedEngine, 'prompts' | 'dispose'> {
  const { activations } = weights;
  const kvPool = new KvPool(model.languageModel, {
    device: device.name,
    dtype: options.kvCacheDtype ?? activations,
    ...(options.kvCacheTokens !== undefined && { tokens: options.kvCacheTokens }),
    maxBatchSize: limits.maxBatchSize,
    // What was copied is taken already; what is mapped will be, page by page.
    maxBytes: kvBudget(freeBytes(device), weightBytes(checkpoint.tensors, { ...options, activations }).mapped),
  });
  disposers.push(() => kvPool.dispose());
  const preprocessor = withImageSize(checkpoint, options);
  const interpolate = options.imageSize !== undefined;
  const adapters = new AdapterSet(weights);
  disposers.push(() => adapters.dispose());
  const imageEncoder =
    preprocessor === undefined || model.imageTokens === undefined
      ? undefined
      : new ImageEncoder(model, preprocessor, device.name, limits.imageCacheBytes, adapters, { interpolate });
  const maxPositions = model.languageModel.maxPositions;
  const maxContext = Math.min(maxPositions, kvPool.numBlocks * kvPool.blockSize);
  const runner = new ModelRunner({
    model,
    kvPool,
    device: device.name,
    maxContext,
    adapters,
    ...(imageEncoder && { imageEncoder }),
  });
  disposers.push(() => runner.dispose());
  const { numBlocks, blockSize } = kvPool;
  const { prefixCache = true } = options;
  const engine = new Engine(runner, { numBlocks, blockSize, maxPositions, prefixCache, ...limits });
  const stats = (): EngineStats => ({
    ...engine.stats,
    blocksInUse: engine.blocks.inUse,
    blocksCached: engine.blocks.cached,
    blocksTotal: numBlocks,
    blocksEvicted: engine.blocks.evicted,
    imageCacheBytes: imageEncoder?.cacheBytes ?? 0,
    liveTensors: liveTensors(),
  });
  const features = imageEncoder?.features;
  const info = describeEngine(options, limits, checkpoint, weights, device, kvPool, engine);
  const commands = new AdapterCommands(adapters, imageEncoder);
  return { engine, features, tasks: new TaskQueue({ features }), adapters: commands, stats, info };
}

function describeEngine(
  options: EngineOptions,
  limits: Limits,
  checkpoint: Checkpoint,
  weights: Weights,
  device: DeviceInfo,
  kvPool: KvPool,
  engine: Engine,
): EngineInfo {
  const { config, generation } = checkpoint;
  return {
    ...describeDevice(options, checkpoint, weights, device),
    purpose: 'generation',
    config,
    generation,
    kvCacheTokens: kvPool.numBlocks * kvPool.blockSize,
    kvCacheBytes: kvPool.bytes,
    maxBatchSize: limits.maxBatchSize,
    maxContext: engine.maxContext,
    supportsImages: config.vision !== undefined,
  };
}

/** What of EngineInfo does not depend on what the checkpoint is for. */
type DeviceFields =
  'dir' | 'modelType' | 'device' | 'deviceName' | 'level' | 'threads' | 'dtype' | 'quantize' | 'weightBytes';

/** How the options want the weights. */
export function weightsOptions(options: EngineOptions, { name }: DeviceInfo): WeightsOptions {
  const { dtype = 'auto', quantize, quantizeActivations = false } = options;
  return { device: name, dtype, ...(quantize && { quantize }), quantizeActivations };
}

/** What EngineInfo says of the folder and of where it runs. */
export function describeDevice(
  options: EngineOptions,
  checkpoint: CheckpointFiles & { config: { modelType: string } },
  weights: Weights,
  device: DeviceInfo,
): Pick<EngineInfo, DeviceFields> {
  const { dtype = 'auto', quantize = 'none' } = options;
  const { activations, bytes: weightBytes } = weights;
  const stored = dtype === 'auto' ? storedDtype(checkpoint).toLowerCase() : dtype;
  return {
    dir: options.dir,
    modelType: checkpoint.config.modelType,
    device: device.name,
    deviceName: device.device,
    level: device.level,
    threads: device.name === 'cpu' ? getThreads() : cpus().length,
    dtype: activations === 'f32' ? stored : activations,
    quantize,
    weightBytes,
  };
}

/** The image processor's settings with the size that was asked for. INVALID_ARGUMENT where no image of that size can be read. */
export function withImageSize(
  { preprocessor, config }: { preprocessor?: PreprocessorConfig; config: Pick<ModelConfig, 'vision'> },
  { imageSize }: EngineOptions,
): PreprocessorConfig | undefined {
  if (imageSize === undefined) return preprocessor;
  const least = config.vision?.patchSize ?? Infinity;
  if (preprocessor !== undefined && Number.isSafeInteger(imageSize) && imageSize >= least) {
    return { ...preprocessor, imageSize };
  }
  const wanted = config.vision === undefined ? 'absent for a model that reads no images' : `at least ${least} pixels`;
  const message = `imageSize must be ${wanted}, got ${describe(imageSize)}`;
  throw new QFormerError('INVALID_ARGUMENT', message, { option: 'imageSize' });
}

/** `auto` is the first GPU of the CUDA backend where one can be used, else the CPU. */
export function chooseDevice(wanted: string): DeviceInfo {
  const all = devices({ probe: wanted !== 'cpu' });
  const isCuda = ({ name }: DeviceInfo): boolean => /^cuda(:0)?$/.test(name);
  const found =
    wanted === 'auto'
      ? (all.find(isCuda) ?? all.find(({ name }) => name === 'cpu'))
      : wanted === 'cuda' || wanted === 'cuda:0'
        ? all.find(isCuda)
        : all.find(({ name }) => name === wanted);
  if (found !== undefined) return found;
  const names = all.map(({ name }) => name);
  const unused = unusedDevices().filter(({ device }) => wanted.split(':')[0] === device);
  const why = unused.length > 0 ? unused[0]!.reason : `found: ${names.join(', ')}`;
  const message = `device ${describe(wanted)} is not available: ${why}`;
  throw new QFormerError('DEVICE', message, { device: wanted, available: names });
}

/** The numbers among the options, with defaults. INVALID_ARGUMENT names the option. */
export function checkLimits(options: EngineOptions): Limits {
  const count = (name: keyof EngineOptions, fallback: number, low: number): number => {
    const value = options[name] ?? fallback;
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= low && value < 2 ** 31) return value;
    const message = `${name} must be an integer of at least ${low}, got ${describe(value)}`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option: name });
  };
  const oneOf = (name: keyof EngineOptions, allowed: readonly string[]): void => {
    const value = options[name];
    if (value === undefined || allowed.includes(value as string)) return;
    const message = `${name} must be one of ${allowed.join(', ')}, got ${describe(value)}`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option: name, allowed });
  };
  oneOf('dtype', ['auto', 'f32', 'f16', 'bf16']);
  oneOf('quantize', ['int8', 'int4']);
  if (options.quantizeActivations === true && options.quantize === undefined) {
    const message = 'quantizeActivations needs quantize: only layers of quantised weights take 8 bits';
    throw new QFormerError('INVALID_ARGUMENT', message, { option: 'quantizeActivations' });
  }
  oneOf('kvCacheDtype', ['f32', 'f16', 'bf16']);
  if (options.threads !== undefined) count('threads', 1, 1);
  return {
    maxBatchSize: count('maxBatchSize', DEFAULT_BATCH_SIZE, 1),
    maxStepTokens: count('maxStepTokens', DEFAULT_STEP_TOKENS, 1),
    imageCacheBytes: count('imageCacheBytes', DEFAULT_IMAGE_CACHE_BYTES, 0),
  };
}

function disposeAll(disposers: (() => void)[]): void {
  for (const dispose of disposers.splice(0).reverse()) dispose();
}
