// How a caption is decoded where the caller does not say: the settings with which LAVIS and the model cards caption. BLIP-2 and
// InstructBLIP search with five beams; InstructBLIP penalises repetition, and as in LAVIS that of the answer alone. A model
// folder's `captionOptions` (prompts.ts) take their place.

import type { GenerateParams } from './engine/params.js';
import type { ChatNames } from './io/config.js';

/** Options of a request that can have a default for captions. */
export type CaptionDefaults = Pick<
  GenerateParams,
  | 'maxNewTokens'
  | 'minNewTokens'
  | 'numBeams'
  | 'lengthPenalty'
  | 'repetitionPenalty'
  | 'penalizePrompt'
  | 'noRepeatNgramSize'
>;

/** Of an architecture; `chatNames`: see ModelConfig. Models that were made for dialogue are greedy, as in their answers. */
export function captionDefaults(modelType: string, chatNames: ChatNames | undefined): CaptionDefaults {
  if (chatNames !== undefined) return {};
  if (modelType === 'blip-2') return { numBeams: 5, maxNewTokens: 30, minNewTokens: 1 };
  if (modelType !== 'instructblip') return {};
  return { numBeams: 5, maxNewTokens: 256, minNewTokens: 1, repetitionPenalty: 1.5, penalizePrompt: false };
}

/** `params` with `defaults` for what they leave open. Who asks for sampling or log-probabilities gets no beams. */
export function withCaptionDefaults(params: GenerateParams, defaults: CaptionDefaults): GenerateParams {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, logprobs = false } = params;
  const isSampled = temperature > 0 || topK > 0 || topP < 1 || minP > 0 || logprobs !== false;
  const { numBeams = 1, lengthPenalty, ...common } = defaults;
  const beams = params.numBeams ?? (isSampled ? 1 : numBeams);
  const search = beams === 1 ? {} : { numBeams: beams, ...(lengthPenalty !== undefined && { lengthPenalty }) };
  return { ...common, ...search, ...params };
}
