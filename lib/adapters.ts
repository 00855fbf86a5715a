// The adapters of a model, on the main thread: commands to the worker, and what it answered. A command takes effect between two
// steps of the engine; a request that is running keeps the weights it was started with.

import type { EngineClient } from './engine/client.js';
import type { AdapterCommand } from './engine/protocol.js';
import { checkOptions } from './errors.js';
import type { AdapterInfo } from './io/adapter.js';
import { checkText } from './options.js';

export type { AdapterInfo } from './io/adapter.js';

/** PEFT LoRA adapters of one model; `Model.adapters`. */
export class Adapters {
  readonly #client: EngineClient;
  readonly #loaded = new Map<string, AdapterInfo>();

  /** @internal */
  constructor(client: EngineClient) {
    this.#client = client;
  }

  /**
   * Loads the folder `dir` as PEFT saves it, under `name`. Rejects with INVALID_ARGUMENT (the name is taken, an adapter is merged),
   * IO, FORMAT (naming every tensor that does not fit) and UNSUPPORTED.
   */
  async load(dir: string, options: { name: string }): Promise<AdapterInfo> {
    checkText('adapters.load', 'the adapter folder', dir);
    checkOptions('adapters.load', options, ['name']);
    checkText('adapters.load', 'the name', options?.name);
    return this.#run({ action: 'load', name: options.name, dir });
  }

  /** The loaded adapters, oldest first. */
  list(): AdapterInfo[] {
    return [...this.#loaded.values()].map((info) => ({ ...info, parts: [...info.parts] }));
  }

  /** Frees an adapter. INVALID_ARGUMENT while requests use it. */
  async unload(name: string): Promise<void> {
    checkText('adapters.unload', 'the name', name);
    await this.#run({ action: 'unload', name });
    this.#loaded.delete(name);
  }

  /**
   * Puts an adapter into the weights: from now on every request has it, at the speed of the bare model, and none may have another.
   * INVALID_ARGUMENT while requests are running or another adapter is merged.
   */
  async merge(name: string): Promise<AdapterInfo> {
    checkText('adapters.merge', 'the name', name);
    return this.#run({ action: 'merge', name });
  }

  /** Takes a merged adapter out of the weights, which are then what they were, bit for bit. INVALID_ARGUMENT while requests are running. */
  async unmerge(name: string): Promise<AdapterInfo> {
    checkText('adapters.unmerge', 'the name', name);
    return this.#run({ action: 'unmerge', name });
  }

  async #run(command: AdapterCommand): Promise<AdapterInfo> {
    const info = await this.#client.adapter(command);
    this.#loaded.set(info.name, info);
    return { ...info, parts: [...info.parts] };
  }
}
