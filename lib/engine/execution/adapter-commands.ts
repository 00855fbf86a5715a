// What the main thread may do with adapters, against the requests that are running: none may lose or change the weights it was
// started with. Commands take effect between two steps.

import { QFormerError } from '../../errors.js';
import type { AdapterInfo } from '../../io/adapter.js';
import type { AdapterSet } from '../../models/adapters.js';
import type { ImageEncoder } from './image-encoder.js';
import type { AdapterCommand } from '../protocol.js';

/** Runs adapter commands of one model and knows which adapter each running request uses. */
export class AdapterCommands {
  readonly #running = new Map<number, string | undefined>();

  constructor(
    private readonly adapters: AdapterSet,
    private readonly imageEncoder: ImageEncoder | undefined,
  ) {}

  /** The identity under which a request runs; from now until `ended` it counts as running. Throws as `AdapterSet.identityFor`. */
  started(id: number, name: string | undefined): string | undefined {
    const identity = this.adapters.identityFor(name);
    this.#running.set(id, name);
    return identity;
  }

  /** To be called when a request has ended in any way. */
  ended(id: number): void {
    this.#running.delete(id);
  }

  /** Throws INVALID_ARGUMENT where a running request stands in the way; else as the method of AdapterSet. */
  run(command: AdapterCommand): AdapterInfo {
    const result = this.#run(command);
    const merged = this.adapters.identityFor(undefined);
    if (this.imageEncoder !== undefined) {
      this.imageEncoder.features.merged = this.adapters.identityOf(merged, ['vision']) ?? '';
    }
    return result;
  }

  #run(command: AdapterCommand): AdapterInfo {
    const { adapters } = this;
    const { name } = command;
    switch (command.action) {
      case 'load':
        return adapters.load(name, command.dir);
      case 'unload': {
        const info = { ...adapters.require(name).info };
        this.#requireIdle('unload', name, info.merged ? undefined : name);
        adapters.unload(name);
        return { ...info, merged: false };
      }
      case 'merge':
        this.#requireIdle('merge', name);
        return adapters.merge(name);
      case 'unmerge':
        this.#requireIdle('unmerge', name);
        return adapters.unmerge(name);
    }
  }

  /** No request runs, or none with the adapter `user`. */
  #requireIdle(action: string, name: string, user?: string): void {
    const running = [...this.#running.values()].filter((used) => user === undefined || used === user).length;
    if (running === 0) return;
    const which = user === undefined ? 'requests are running' : `running requests use it`;
    const message = `${action}: adapter '${name}' cannot be changed now: ${running} ${which}; await them first`;
    throw new QFormerError('INVALID_ARGUMENT', message, { adapter: name, running });
  }
}
