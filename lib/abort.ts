// Listening to AbortSignals that many requests share: one listener per signal, however many requests wait for it, because
// Node warns of a leak at the eleventh. It goes when the last of them is done, so that a long-lived signal holds nothing.

interface Waiting {
  entries: Set<() => void>;
  listener: () => void;
}

const waitingFor = new WeakMap<AbortSignal, Waiting>();

/** Calls `callback` when `signal` fires, at once where it has. Returns a function that takes this back. */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  if (signal.aborted) {
    callback();
    return () => undefined;
  }
  const waiting = waitingFor.get(signal) ?? listen(signal);
  // An own function each time: the same callback may be given twice.
  const entry = (): void => callback();
  waiting.entries.add(entry);
  return () => {
    waiting.entries.delete(entry);
    if (waiting.entries.size > 0 || waitingFor.get(signal) !== waiting) return;
    waitingFor.delete(signal);
    signal.removeEventListener('abort', waiting.listener);
  };
}

function listen(signal: AbortSignal): Waiting {
  const entries = new Set<() => void>();
  const listener = (): void => {
    waitingFor.delete(signal);
    for (const entry of entries) entry();
  };
  signal.addEventListener('abort', listener, { once: true });
  const waiting = { entries, listener };
  waitingFor.set(signal, waiting);
  return waiting;
}
