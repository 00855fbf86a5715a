// Retrieval checkpoint → running tasks. There is no language model, so there is no engine, no KV pool and no scheduler.

import { QFormerError } from '../../errors.js';
import { openRetrievalCheckpoint } from '../../io/retrieval-checkpoint.js';
import { TextTokenizer } from '../../io/tokenizer.js';
import { RetrievalModel } from '../../models/retrieval.js';
import { Weights } from '../../models/weights.js';
import { liveTensors, setThreads } from '../../tensor/index.js';
import { ImageFeatures } from './image-features.js';
import {
  checkLimits,
  chooseDevice,
  describeDevice,
  weightsOptions,
  withImageSize,
  type LoadCallbacks,
  type LoadedEngine,
} from './load.js';
import { requireMemory } from './memory-check.js';
import type { EngineOptions } from '../protocol.js';
import { TaskQueue } from './task-queue.js';
import { TensorCache } from './tensor-cache.js';

/** Loads `options.dir`, for which `isRetrievalCheckpoint` holds. Errors as `loadEngine`. */
export async function loadRetrieval(options: EngineOptions, callbacks: LoadCallbacks = {}): Promise<LoadedEngine> {
  const { signal, onProgress } = callbacks;
  const limits = checkLimits(options);
  const device = chooseDevice(options.device ?? 'auto');
  if (options.threads !== undefined) setThreads(options.threads);
  if (options.languageModel !== undefined) {
    const message = `languageModel: ${options.dir} compares images with texts and takes no language model`;
    throw new QFormerError('INVALID_ARGUMENT', message, { option: 'languageModel' });
  }
  const checkpoint = openRetrievalCheckpoint(options.dir);
  requireMemory(checkpoint, options, device);
  const { config, bytes } = checkpoint;
  const preprocessor = withImageSize(checkpoint, options)!;
  const interpolate = options.imageSize !== undefined;
  onProgress?.({ phase: 'open', loaded: 0, total: bytes });
  const tokenizer = TextTokenizer.load(checkpoint.tokenizerDir);
  const weights = new Weights(checkpoint, weightsOptions(options, device));
  const model = new RetrievalModel(weights, config, () => weights.dispose());
  await weights.load({
    ...(signal && { signal }),
    onProgress: ({ loaded, total }) => onProgress?.({ phase: 'weights', loaded, total }),
  });
  const cache = new TensorCache(limits.imageCacheBytes);
  const features = new ImageFeatures(
    (pixels) => model.encodeImage(pixels, { interpolate }),
    preprocessor,
    device.name,
    cache,
  );
  const maxContext = config.qformer.maxPositionEmbeddings;
  const tokenize = (text: string): number[] => tokenizer.encode(text, { maxTokens: maxContext });
  onProgress?.({ phase: 'ready', loaded: bytes, total: bytes });
  const none = {
    waiting: 0,
    running: 0,
    steps: 0,
    preemptions: 0,
    promptTokens: 0,
    generatedTokens: 0,
    cachedTokens: 0,
  };
  const noBlocks = { blocksInUse: 0, blocksCached: 0, blocksTotal: 0, blocksEvicted: 0 };
  return {
    engine: undefined,
    prompts: undefined,
    features,
    tasks: new TaskQueue({ features, retrieval: { model, tokenize } }),
    info: {
      ...describeDevice(options, checkpoint, weights, device),
      purpose: 'retrieval',
      config,
      generation: { eosTokenIds: [] },
      kvCacheTokens: 0,
      kvCacheBytes: 0,
      maxBatchSize: limits.maxBatchSize,
      maxContext,
      supportsImages: true,
    },
    stats: () => ({ ...none, ...noBlocks, imageCacheBytes: cache.bytes, liveTensors: liveTensors() }),
    dispose: () => {
      cache.clear();
      features.dispose();
      model.dispose();
    },
  };
}
