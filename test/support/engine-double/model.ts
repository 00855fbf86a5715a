// A Model over the stand-in worker.

import { EngineClient } from '../../../lib/engine/client.js';
import { Model } from '../../../lib/model.js';
import { PromptTemplates, type PromptConfig } from '../../../lib/prompts.js';

const workerUrl = new URL('./worker.mjs', import.meta.url);

/** An image of one pixel. */
export const pixel = { data: new Uint8Array([1, 2, 3]), width: 1, height: 1, channels: 3 as const };

/** A model whose answers are what the prompt asks the stand-in worker for. */
export async function modelDouble(
  prompts: PromptConfig = {},
  dir = 'double',
  modelType = 'instructblip',
): Promise<Model> {
  const client = await EngineClient.start({ dir, workerUrl });
  return new Model(client, new PromptTemplates(modelType, prompts), {});
}

/** The start of a client over the stand-in worker. */
export function startDouble(dir: string, signal?: AbortSignal): Promise<EngineClient> {
  return EngineClient.start({ dir, signal, workerUrl });
}
