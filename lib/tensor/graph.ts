// Record and replay: a function's ops are recorded once and then run again in one native call.

import { native, type Handle } from './binding.js';
import { keep, tensorsIn } from './scope.js';

/** A recorded sequence of ops. Its inputs are the kept tensors it read; write new values into them before a replay. */
export class Graph<T = unknown> {
  /** @internal Use {@link record}. */
  constructor(
    private readonly handle: Handle,
    /** What the recorded function returned; holds values after the first replay. */
    readonly outputs: T,
  ) {}

  /** Number of ops recorded. */
  get size(): number {
    return native.graphOps(this.handle);
  }

  /** Runs the recorded ops in order. Errors: whatever an op reports; STALE_TENSOR once disposed. */
  replay(): void {
    native.graphReplay(this.handle);
  }

  /** Frees the graph, its memory and its outputs. May be called twice. */
  dispose(): void {
    for (const tensor of tensorsIn(this.outputs)) tensor.dispose();
    native.graphDispose(this.handle);
  }
}

/**
 * Records the ops of `fn` without running them. Tensors made inside live in memory private to the graph; tensors from outside are
 * kept alive by it. Host transfers (fromArray, write, toArray, zeros) are refused while recording.
 */
export function record<T>(fn: () => T): Graph<T> {
  const handle = native.graphBegin();
  native.openScope();
  let outputs: T;
  try {
    outputs = fn();
    for (const tensor of tensorsIn(outputs)) keep(tensor);
  } catch (error) {
    native.closeScope([]);
    native.graphEnd(handle);
    native.graphDispose(handle);
    throw error;
  }
  native.closeScope([]);
  native.graphEnd(handle);
  return new Graph(handle, outputs);
}
