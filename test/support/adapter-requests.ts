// Adapters of the fixtures with the requests whose answers the reference gives for them, and adapters made up for models that the
// reference has none for.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/io/checkpoint.js';
import { readImage, type IdsRequest, type LoadedEngine } from './engine-models.js';
import { fixturePath, Goldens, readJson } from './fixtures.js';
import { noise } from './noise.js';
import { layout, rawSafetensors } from './safetensors-builder.js';

/** Adapters of instructblip-vicuna-tiny, in the order of their folders under lora/. */
export const LORA_NAMES = ['adapter_a_standard', 'adapter_b_rslora', 'adapter_c_patterns', 'adapter_d_vision'];

/** Adapters of instructblip-flant5-tiny, made with generated/adapters. */
export const T5_ADAPTERS = ['t5', 't5-dora'];

export const loraGoldens = new Goldens('lora', 'expected.safetensors');
export const generatedGoldens = new Goldens('generated', 'adapters', 'expected.safetensors');

/** The three requests of the lora fixture. */
export async function loraRequests(): Promise<IdsRequest[]> {
  const { requests } = readJson<{ requests: { prefix: string; image: string }[] }>('lora', 'expected.json');
  return Promise.all(
    requests.map(async ({ prefix, image }) => ({
      ids: loraGoldens.ids(`${prefix}input_ids`),
      images: [await readImage(fixturePath('lora', image))],
      instructionIds: loraGoldens.ids(`${prefix}qformer_input_ids`),
      params: { maxNewTokens: 24, logprobs: 3 },
    })),
  );
}

/** What the reference answers to one of them, without adapter for an undefined name. */
export const loraIds = (name: string | undefined, request: number): number[] =>
  loraGoldens.ids(`${name ?? 'none'}.r${request}.greedy_ids`);

/** Loads adapters of the lora fixture under the names of their folders. */
export function loadLoras({ adapters }: LoadedEngine, names: readonly string[] = LORA_NAMES): void {
  for (const name of names) adapters.load(name, fixturePath('lora', name));
}

/** A request to an encoder–decoder model with an adapter, and what the reference answers: greedily, or the best of three beams. */
export interface T5Request {
  request: IdsRequest;
  ids: number[];
  /** Of the logits after the start token. */
  logits: string;
}

export async function t5Requests(numBeams: 1 | 3): Promise<T5Request[]> {
  const goldens = new Goldens('instructblip-flant5-tiny', 'expected.safetensors');
  const image = await readImage(fixturePath('instructblip-flant5-tiny', 'images', 'img0.png'));
  const params = { maxNewTokens: numBeams === 1 ? 24 : 12, numBeams };
  return T5_ADAPTERS.flatMap((adapter) =>
    ['c0', 'c1'].map((name) => {
      const ids = goldens.ids(`${name}.input_ids`);
      const instructionIds = goldens.ids(`${name}.qformer_input_ids`);
      return {
        request: { ids, instructionIds, images: [image], eosTokenIds: [1], params, adapter },
        ids: generatedGoldens.ids(`${adapter}.${name}.${numBeams === 1 ? 'greedy' : 'beam3'}_ids`),
        logits: `${adapter}.${name}.first_step_logits`,
      };
    }),
  );
}

/** Loads both adapters of instructblip-flant5-tiny. */
export function loadT5Adapters({ adapters }: LoadedEngine): void {
  for (const name of T5_ADAPTERS) adapters.load(name, fixturePath('generated', 'adapters', name));
}

/** Writes an adapter of rank 3 for the queries and values of a language model, strong enough to change what it says. */
export function writeMadeAdapter(
  dir: string,
  checkpoint: string,
  languageModel: string | undefined,
  seed: number,
): string {
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify({ peft_type: 'LORA', r: 3, lora_alpha: 6 }));
  const layers = [...openCheckpoint(checkpoint, { languageModel }).tensors.values()].filter(({ name }) =>
    /(?:q_proj|v_proj|Attention\.[qv])\.weight$/.test(name),
  );
  const tensors = layers.flatMap(({ name, shape: [out, input] }) => {
    const path = `base_model.model.${name.replace(/\.weight$/, '')}`;
    return [
      [`${path}.lora_A.weight`, { dtype: 'F32', shape: [3, input!], bytes: 12 * input! }],
      [`${path}.lora_B.weight`, { dtype: 'F32', shape: [out!, 3], bytes: 12 * out! }],
    ] as const;
  });
  const { header, dataBytes } = layout(Object.fromEntries(tensors));
  const file = rawSafetensors(JSON.stringify(header), dataBytes);
  const values = noise(dataBytes / 4, seed).map((value) => 0.1 * value);
  file.set(new Uint8Array(values.buffer), file.length - dataBytes);
  writeFileSync(join(dir, 'adapter_model.safetensors'), file);
  return dir;
}
