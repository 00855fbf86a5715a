// A cache of tensors bounded by bytes: the least recently used ones are disposed when a new one needs the room.

import { dtypeSize, keep, type Tensor } from '../../tensor/index.js';

/** Owns the tensors put into it. */
export class TensorCache {
  readonly #entries = new Map<string, { tensor: Tensor; bytes: number }>();
  #bytes = 0;

  constructor(private readonly maxBytes: number) {}

  /** Bytes held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The tensor under `key`, still owned by the cache: valid until the next set(). */
  get(key: string): Tensor | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    return entry.tensor;
  }

  /** Takes a tensor over from the current scope, or leaves it there when it alone exceeds the bound. Returns it. */
  set(key: string, tensor: Tensor): Tensor {
    const bytes = tensor.size * dtypeSize(tensor.dtype);
    if (bytes > this.maxBytes || this.#entries.has(key)) return tensor;
    for (const oldest of this.#entries.keys()) {
      if (this.#bytes + bytes <= this.maxBytes) break;
      this.#drop(oldest);
    }
    this.#entries.set(key, { tensor: keep(tensor), bytes });
    this.#bytes += bytes;
    return tensor;
  }

  /** Frees everything. */
  clear(): void {
    for (const key of [...this.#entries.keys()]) this.#drop(key);
  }

  #drop(key: string): void {
    const entry = this.#entries.get(key)!;
    this.#entries.delete(key);
    this.#bytes -= entry.bytes;
    entry.tensor.dispose();
  }
}
