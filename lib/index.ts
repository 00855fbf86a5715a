// The public API of qformer: load a checkpoint folder, caption images, answer questions about them.
// Tensors and kernels on their own are in `qformer/tensor`.

export { loadModel, Model } from './model.js';
export { Adapters, type AdapterInfo } from './adapters.js';
export { Chat, type ChatMessage, type ChatRecord } from './chat.js';
export { Generation, type GenerationChunk, type GenerationResult } from './generation.js';
export { EncodedImage, type ModelImage } from './encoded-image.js';
export { ImageIndex, type SearchQuery, type SearchResult } from './image-index.js';
export type { RankedCandidate } from './rank.js';
export type { Embedding, Match } from './retrieval.js';
export type {
  CaptionOptions,
  ChatOptions,
  EmbedInput,
  EmbedOptions,
  EstimateOptions,
  GenerateOptions,
  LoadOptions,
  PromptOptions,
  RankOptions,
  RetrievalOptions,
  SearchOptions,
} from './options.js';
export type { PromptConfig } from './prompts.js';
export type { CaptionDefaults } from './caption-defaults.js';
export type {
  Beam,
  EngineInfo,
  EngineStats,
  FinishReason,
  LoadProgress,
  Timings,
  TokenLogprob,
  Usage,
} from './engine/protocol.js';
export type { ImageInput } from './io/image.js';
export { bleu4, ciderD, type CaptionCase } from './eval/captions.js';
export { recallAtK } from './eval/recall.js';
export { normalizeAnswer, vqaAccuracy } from './eval/vqa.js';
export { estimateMemory, inspect, type CheckpointInfo, type PartInfo } from './inspect.js';
export type { MemoryEstimate } from './io/memory-estimate.js';
export { doctor, type DoctorReport } from './doctor.js';
export { QFormerError, isQFormerError, type ErrorCode } from './errors.js';
