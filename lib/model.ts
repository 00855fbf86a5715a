// A loaded model on the main thread: turns a call into a prompt and decoded pixels, and hands both to the engine's worker.
// Nothing here touches a tensor. Images are decoded by sharp's own threads; their pixels move to the worker without a copy.

import { onAbort } from './abort.js';
import { Adapters } from './adapters.js';
import { Chat } from './chat.js';
import type { EncodedImage } from './encoded-image.js';
import { requestImage, type ModelImage } from './encoded-image.js';
import { EngineClient, type RequestHandle } from './engine/client.js';
import type { GenerateParams } from './engine/params.js';
import type { EngineInfo, EngineStats } from './engine/protocol.js';
import { QFormerError, describe } from './errors.js';
import { Generation, type GenerationChunk, type GenerationResult } from './generation.js';
import type { ImageOptions } from './io/image.js';
import {
  captionParams,
  checkChatOptions,
  checkEmbed,
  checkLoadOptions,
  checkRank,
  checkRetrievalOptions,
  checkText,
  promptParams,
  requestParams,
  withTemperature,
  type CaptionOptions,
  type ChatOptions,
  type EmbedInput,
  type EmbedOptions,
  type GenerateOptions,
  type LoadOptions,
  type PromptOptions,
  type RankOptions,
  type RetrievalOptions,
} from './options.js';
import { PromptTemplates, readPromptConfig } from './prompts.js';
import { rankCandidates, type RankedCandidate } from './rank.js';
import { Retrieval, type Embedding, type Match } from './retrieval.js';

/** A finished prompt with its image, ready to be sent. */
interface Request {
  prompt: string | number[];
  image?: ModelImage | undefined;
  /** To be scored as answers. */
  candidates?: string[];
  params: GenerateParams;
  options: GenerateOptions;
}

/**
 * Loads the checkpoint folder `dir` into a worker thread of its own; several models may be loaded at once.
 * Throws INVALID_ARGUMENT, IO, FORMAT (naming every wrong tensor), UNSUPPORTED, DEVICE, OUT_OF_MEMORY, ABORTED.
 */
export async function loadModel(dir: string, options: LoadOptions = {}): Promise<Model> {
  checkText('loadModel', 'the checkpoint folder', dir);
  checkLoadOptions(options);
  const { maxImageBytes, maxImagePixels, allowHttp, ...engine } = options;
  const client = await EngineClient.start({ ...engine, dir });
  try {
    const { modelType, config } = client.info;
    const chatNames = 'chatNames' in config ? config.chatNames : undefined;
    const languageModel = 'text' in config ? config.text.modelType : undefined;
    const templates = new PromptTemplates(modelType, readPromptConfig(dir), chatNames, languageModel);
    return new Model(client, templates, { maxBytes: maxImageBytes, maxPixels: maxImagePixels, allowHttp });
  } catch (error) {
    await client.close();
    throw error;
  }
}

/** A loaded model; made by `loadModel`. Methods throw INVALID_ARGUMENT at once, everything else rejects the Generation. */
export class Model {
  /** The model's adapters; requests name the one they want by their option `adapter`. */
  readonly adapters: Adapters;
  readonly #client: EngineClient;
  readonly #templates: PromptTemplates;
  readonly #imageOptions: ImageOptions;
  readonly #retrieval: Retrieval;
  #disposed = false;

  /** @internal */
  constructor(client: EngineClient, templates: PromptTemplates, imageOptions: ImageOptions) {
    this.adapters = new Adapters(client);
    this.#client = client;
    this.#templates = templates;
    this.#imageOptions = imageOptions;
    this.#retrieval = new Retrieval(client, imageOptions);
  }

  /** What is loaded, and where and how it runs. */
  get info(): EngineInfo {
    return this.#client.info;
  }

  /** The languages that `caption` has a built-in prompt for; the first is the default. */
  get captionLanguages(): string[] {
    return this.#templates.languages;
  }

  /** Describes an image, with five beams where the model was made for it (its text then comes as one piece). The caption prompt has no template, so `raw` changes nothing. Errors: IO, FORMAT, UNSUPPORTED, ABORTED. */
  caption(image: ModelImage, options: CaptionOptions = {}): Generation {
    const params = captionParams(options, this.#templates.captionOptions);
    return this.#start('caption', {
      prompt: options.prompt ?? this.#templates.caption(options.lang),
      image,
      params: this.#untilStop(params, { raw: options.prompt !== undefined }),
      options,
    });
  }

  /** Answers a question about an image. Errors: IO, FORMAT, UNSUPPORTED, ABORTED, INVALID_ARGUMENT (beyond the context). */
  answer(image: ModelImage, question: string, options: GenerateOptions = {}): Generation {
    checkText('answer', 'the question', question);
    const params = this.#untilStop(requestParams('answer', options), options);
    const prompt = options.raw ? question : this.#templates.answer(question);
    return this.#start('answer', { prompt, image, params, options });
  }

  /** Continues a finished prompt, text or token ids, with or without an image; no template is applied. Errors as `answer`. */
  generate(prompt: string | number[], options: PromptOptions = {}): Generation {
    const params = promptParams(options);
    checkPrompt(prompt, options.image !== undefined);
    return this.#start('generate', { prompt, image: options.image, params, options });
  }

  /**
   * Candidates by how likely the model is to answer with them, most likely first; image and prompt are computed once for all.
   * By default the log-probability of a whole candidate counts. Errors as `answer`.
   */
  async rank(
    image: ModelImage,
    question: string,
    candidates: readonly string[],
    options: RankOptions = {},
  ): Promise<RankedCandidate[]> {
    checkRank(question, candidates, options);
    const { by = 'sum', raw = false, signal, exif, adapter } = options;
    const prompt = raw ? question : this.#templates.answer(question);
    const texts = [...candidates];
    const request = { prompt, image, candidates: texts, params: {}, options: { signal, exif, adapter } };
    return rankCandidates(texts, await this.#start('rank', request), by);
  }

  /** A conversation, usually about an image; `history` continues an earlier one. */
  chat(options: ChatOptions = {}): Chat {
    checkChatOptions(options);
    this.#requireLive('chat');
    const { images: [image] = [], system, history } = options;
    const start = (prompt: string, request: GenerateOptions): Generation => {
      const params = this.#untilStop(requestParams('chat.send', request), request);
      return this.#start('chat.send', { prompt, image, params, options: request });
    };
    return new Chat(start, this.#templates, { system, history });
  }

  /**
   * Whether a text describes an image, by the matching head (ITM): one Match per text. Calls that are made together are computed
   * together. Errors: UNSUPPORTED (the checkpoint has no such head), INVALID_ARGUMENT, IO, FORMAT, ABORTED; so for the next two.
   */
  match(image: ModelImage, text: string, options?: RetrievalOptions): Promise<Match>;
  match(image: ModelImage, texts: readonly string[], options?: RetrievalOptions): Promise<Match[]>;
  async match(
    image: ModelImage,
    texts: string | readonly string[],
    options: RetrievalOptions = {},
  ): Promise<Match | Match[]> {
    checkRetrievalOptions('match', options);
    this.#requireLive('match');
    const matches = await this.#retrieval.match(image, typeof texts === 'string' ? [texts] : texts, options);
    return typeof texts === 'string' ? matches[0]! : matches;
  }

  /** Contrastive similarities (ITC): one row per image, one number from −1 to 1 per text, of the image's best query vector. */
  async similarity(
    images: readonly ModelImage[],
    texts: readonly string[],
    options: RetrievalOptions = {},
  ): Promise<number[][]> {
    checkRetrievalOptions('similarity', options);
    this.#requireLive('similarity');
    return this.#retrieval.similarity(images, texts, options);
  }

  /** The unit vectors that `similarity` compares: of an image one per query token, or pooled; of a text one. */
  async embed(input: EmbedInput, options: EmbedOptions = {}): Promise<Embedding[]> {
    checkEmbed(input, options);
    this.#requireLive('embed');
    return this.#retrieval.embed('embed', input, options);
  }

  /** Runs the vision tower once; the result stands for the image in every call of this model until it is disposed. */
  async encodeImage(image: ModelImage, options: RetrievalOptions = {}): Promise<EncodedImage> {
    checkRetrievalOptions('encodeImage', options);
    this.#requireLive('encodeImage');
    return this.#retrieval.encode(image, options);
  }

  /** Counters of the engine. Rejects with ABORTED once disposed. */
  stats(): Promise<EngineStats> {
    return this.#client.stats();
  }

  /** Ends all requests (they reject with ABORTED) and frees everything. May be called again. */
  async dispose(): Promise<void> {
    this.#disposed = true;
    await this.#client.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #requireLive(where: string): void {
    if (this.#disposed) throw disposedError(where);
    if (this.#client.failure !== undefined) throw this.#client.failure;
  }

  /** With the stop strings of the template, where one is used. */
  #untilStop(params: GenerateParams, { raw }: GenerateOptions): GenerateParams {
    const { stop } = this.#templates;
    return raw || stop.length === 0 ? params : { ...params, stop: [...stop, ...[params.stop ?? []].flat()] };
  }

  #start(where: string, request: Request): Generation {
    this.#requireLive(where);
    if (this.info.purpose === 'retrieval') {
      const message = `${where}: this checkpoint cannot generate text: it compares images with texts and has no language model`;
      throw new QFormerError('UNSUPPORTED', message, { modelType: this.info.modelType });
    }
    if (request.image !== undefined && !this.info.supportsImages) {
      throw new QFormerError('UNSUPPORTED', `${where}: ${this.info.modelType} is a text-only model and takes no image`);
    }
    return new Generation((emit, cancel) => this.#run(where, request, emit, cancel));
  }

  async #run(
    where: string,
    { prompt, image, candidates, params, options }: Request,
    emit: (chunk: GenerationChunk) => void,
    cancel: AbortSignal,
  ): Promise<GenerationResult> {
    const { signal, exif, adapter } = options;
    const throwIfAborted = (): void => {
      if (signal?.aborted)
        throw new QFormerError('ABORTED', `${where}: the request was aborted`, {}, { cause: signal.reason });
    };
    throwIfAborted();
    const images =
      image === undefined ? [] : [await requestImage(this.#client, image, { ...this.#imageOptions, exif, signal })];
    throwIfAborted();
    this.#requireLive(where);
    const handle = this.#client.submit(
      {
        prompt,
        images,
        params: withTemperature(params, this.info.generation),
        ...(candidates && { candidates }),
        ...(adapter !== undefined && { adapter }),
      },
      { onDelta: emit, transferImages: true },
    );
    const result = await endWith(handle, signal === undefined ? [cancel] : [cancel, signal]);
    if (result.finishReason === 'abort') throwIfAborted();
    return result;
  }
}

/** The result of `handle`; the first of `signals` to fire aborts it. */
async function endWith(handle: RequestHandle, signals: readonly AbortSignal[]): Promise<GenerationResult> {
  // Not AbortSignal.any: of a long-lived signal it keeps something for every request.
  const forget = signals.map((signal) => onAbort(signal, () => handle.abort()));
  try {
    return await handle.done;
  } finally {
    for (const each of forget) each();
  }
}

function disposedError(where: string): QFormerError {
  return new QFormerError('ABORTED', `${where}: the model was disposed`);
}

function checkPrompt(prompt: unknown, hasImage: boolean): void {
  if (!Array.isArray(prompt)) return checkText('generate', 'the prompt', prompt, hasImage);
  const wrong = prompt.findIndex((id) => !Number.isSafeInteger(id) || id < 0);
  if (wrong < 0 && (prompt.length > 0 || hasImage)) return;
  const found = wrong < 0 ? 'an empty array' : `${describe(prompt[wrong])} at index ${wrong}`;
  throw new QFormerError('INVALID_ARGUMENT', `generate: token ids must be integers of at least 0, got ${found}`);
}
