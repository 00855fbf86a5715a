// Loads a fixture model into an engine on this thread: no worker, no tokenizer, prompts as ids.
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import sharp from 'sharp';
import { expect } from 'vitest';
import { BeamSearch } from '../../lib/engine/scheduling/beam-search.js';
import { Engine, type EngineEvent, type EngineLimits } from '../../lib/engine/scheduling/engine.js';
import type { SequenceGroup } from '../../lib/engine/scheduling/group.js';
import { ImageEncoder } from '../../lib/engine/execution/image-encoder.js';
import { KvPool } from '../../lib/engine/execution/kv-pool.js';
import { resolveParams, type GenerateParams } from '../../lib/engine/params.js';
import type { EngineResult } from '../../lib/engine/protocol.js';
import { ModelRunner } from '../../lib/engine/execution/runner.js';
import { Sequence, type SequenceImage } from '../../lib/engine/scheduling/sequence.js';
import { openCheckpoint } from '../../lib/io/checkpoint.js';
import { placeImageTokens } from '../../lib/models/blip2.js';
import { AdapterSet } from '../../lib/models/adapters.js';
import type { VisionLanguageModel } from '../../lib/models/model.js';
import { createModel } from '../../lib/models/registry.js';
import { Weights } from '../../lib/models/weights.js';
import { liveTensors } from '../../lib/tensor/index.js';

export const fixturePath = (name: string): string => fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));

export interface LoadedEngine {
  engine: Engine;
  model: VisionLanguageModel;
  runner: ModelRunner;
  imageEncoder?: ImageEncoder;
  adapters: AdapterSet;
  /** Of the pool of keys and values. */
  kvBytes: number;
  dispose(): void;
}

export interface LoadOptions extends Partial<EngineLimits> {
  kvCacheTokens?: number;
  kvDtype?: 'f32' | 'f16' | 'bf16';
  decodeGraphs?: boolean;
  imageCacheBytes?: number;
  dir?: string;
  languageModel?: string;
  device?: string;
  dtype?: 'auto' | 'f32' | 'f16' | 'bf16';
  quantize?: 'int8' | 'int4';
  quantizeActivations?: boolean;
}

export async function loadEngine(name: string, options: LoadOptions = {}): Promise<LoadedEngine> {
  const checkpoint = openCheckpoint(options.dir ?? fixturePath(name), { languageModel: options.languageModel });
  const device = options.device ?? 'cpu';
  const { dtype = 'auto', quantize, quantizeActivations = false } = options;
  const weights = new Weights(checkpoint, { device, dtype, ...(quantize && { quantize }), quantizeActivations });
  const model = createModel(checkpoint, weights);
  await weights.load();
  const kvPool = new KvPool(model.languageModel, {
    device,
    dtype: options.kvDtype ?? weights.activations,
    tokens: options.kvCacheTokens ?? 4096,
    maxBatchSize: 8,
    maxBytes: 2 ** 30,
  });
  const limits: EngineLimits = {
    maxBatchSize: 8,
    maxStepTokens: 512,
    ...options,
    numBlocks: kvPool.numBlocks,
    blockSize: kvPool.blockSize,
    maxPositions: model.languageModel.maxPositions,
  };
  const maxContext = Math.min(limits.maxPositions, limits.numBlocks * limits.blockSize);
  const { preprocessor } = checkpoint;
  const adapters = new AdapterSet(weights);
  const imageEncoder =
    preprocessor && new ImageEncoder(model, preprocessor, device, options.imageCacheBytes ?? 64 * 2 ** 20, adapters);
  const runner = new ModelRunner({
    model,
    kvPool,
    device,
    maxContext,
    adapters,
    ...(imageEncoder && { imageEncoder }),
    ...(options.decodeGraphs !== undefined && { decodeGraphs: options.decodeGraphs }),
  });
  const dispose = (): void => {
    runner.dispose();
    adapters.dispose();
    kvPool.dispose();
    model.dispose();
  };
  return {
    engine: new Engine(runner, limits),
    model,
    runner,
    adapters,
    kvBytes: kvPool.bytes,
    ...(imageEncoder && { imageEncoder }),
    dispose,
  };
}

/** Runs `use` with a loaded model, which leaves neither blocks of the pool nor tensors behind. */
export async function withEngine(
  name: string,
  options: LoadOptions,
  use: (loaded: LoadedEngine) => void | Promise<void>,
): Promise<void> {
  const before = liveTensors();
  const loaded = await loadEngine(name, options);
  try {
    await use(loaded);
    expect(loaded.engine.blocks.inUse).toBe(0);
  } finally {
    loaded.dispose();
  }
  expect(liveTensors()).toBe(before);
}

/** An RGB image file as the engine wants it. */
export async function readImage(path: string): Promise<SequenceImage> {
  const { data, info } = await sharp(path)
    .removeAlpha()
    .toColourspace('srgb')
    .raw()
    .toBuffer({ resolveWithObject: true });
  const digest = createHash('sha256').update(`${info.width}x${info.height}:`).update(data).digest('hex');
  return { digest, data: new Uint8Array(data), width: info.width, height: info.height };
}

export interface IdsRequest {
  /** Prompt ids, image placeholders included or not. */
  ids: number[];
  images?: SequenceImage[];
  instructionIds?: number[];
  params?: GenerateParams;
  eosTokenIds?: number[];
  /** Name of a loaded adapter, for `runTogether`; to `idsSequence` and `idsGroup` its identity. */
  adapter?: string | undefined;
}

export function idsSequence(id: number, model: VisionLanguageModel, request: IdsRequest): Sequence {
  const images = request.images ?? [];
  const placed = placeImageTokens(model.config, request.ids, images.length);
  const { text } = model.config;
  return new Sequence({
    id,
    ...(text.modelType === 't5'
      ? { encoderTokens: placed.ids, promptTokens: [text.decoderStartTokenId] }
      : { promptTokens: placed.ids }),
    imagePositions: placed.imageRows,
    images,
    ...(request.instructionIds && { instructionIds: request.instructionIds }),
    ...(request.adapter !== undefined && { adapter: request.adapter }),
    params: resolveParams({ seed: 1, ...request.params }),
    eosTokenIds: request.eosTokenIds ?? [2],
    badWordIds: (request.params?.badWords ?? []) as number[][],
    detokenizer: () => ({ push: (token) => `${token} `, flush: () => '' }),
    arrival: performance.now(),
  });
}

/** The request as the engine takes it: a sequence, or with `numBeams` a beam search. */
export function idsGroup(id: number, model: VisionLanguageModel, request: IdsRequest): SequenceGroup {
  const sequence = idsSequence(id, model, request);
  return sequence.params.numBeams > 1 ? new BeamSearch(sequence) : sequence;
}

/** Runs until nothing is left. Throws the first request's error. */
export function finishAll(engine: Engine, onStep?: (events: EngineEvent[]) => void): Map<number, EngineResult> {
  const results = new Map<number, EngineResult>();
  while (engine.hasWork) {
    const events = engine.step();
    onStep?.(events);
    for (const event of events) {
      if (event.type === 'error') throw event.error;
      if (event.type === 'end') results.set(event.id, event.result);
    }
  }
  return results;
}

/** Runs requests at the same time, or each one step after the one before; the results in their order. */
export function runTogether(
  { engine, model, adapters }: LoadedEngine,
  requests: readonly IdsRequest[],
  { staggered = false } = {},
): EngineResult[] {
  let next = 0;
  const addNext = (): void => {
    const request = requests[next];
    if (request === undefined) return;
    engine.add(idsGroup(next++, model, { ...request, adapter: adapters.identityFor(request.adapter) }));
  };
  do addNext();
  while (!staggered && next < requests.length);
  const results = finishAll(engine, addNext);
  return requests.map((_, id) => results.get(id)!);
}

/** What of a result depends on the request alone, to compare byte by byte. */
export function bytesOf({ tokenIds, finishReason, logprobs, beams }: EngineResult): string {
  return JSON.stringify({ tokenIds, finishReason, logprobs, beams });
}
