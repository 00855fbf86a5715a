// Turns generated ids into text that may be shown: incremental detokenisation, then stop strings. Text that could still
// become a stop string is held back, so that no part of one is ever emitted, wherever the token borders lie; so is white
// space that could be the answer's last, where the answer is trimmed.

/** Ids to text, a piece at a time; `push` answers '' while a character is unfinished. */
export interface Detokenizer {
  push(id: number): string;
  flush(): string;
}

/** The visible text of one answer. */
export class TextStream {
  /** Everything emitted so far. */
  text = '';
  /** A stop string was found; later text is dropped. */
  stopped = false;
  #held = '';

  constructor(
    private readonly detokenizer: Detokenizer,
    private readonly stops: readonly string[],
    /** Leave out white space before and after the answer. */
    private readonly trim = false,
  ) {}

  /** Takes one id, answers the text that became final. `mayStop` false: stop strings count as text. */
  push(id: number, mayStop = true): string {
    return this.#take(this.detokenizer.push(id), mayStop, false);
  }

  /** The rest of the text at the end of the answer. */
  finish(mayStop = true): string {
    return this.#take(this.detokenizer.flush(), mayStop, true);
  }

  #take(piece: string, mayStop: boolean, last: boolean): string {
    if (this.stopped) return '';
    const pending = this.#held + piece;
    const stop = mayStop ? firstOf(pending, this.stops) : -1;
    let end = pending.length;
    if (stop >= 0) {
      this.stopped = true;
      end = stop;
    } else if (mayStop && !last) {
      end -= heldLength(pending, this.stops);
    }
    if (this.trim) end = pending.slice(0, end).trimEnd().length;
    this.#held = this.stopped ? '' : pending.slice(end);
    const taken = pending.slice(0, end);
    const visible = this.trim && this.text === '' ? taken.trimStart() : taken;
    this.text += visible;
    return visible;
  }
}

function firstOf(text: string, stops: readonly string[]): number {
  let first = -1;
  for (const stop of stops) {
    const at = text.indexOf(stop);
    if (at >= 0 && (first < 0 || at < first)) first = at;
  }
  return first;
}

/** Length of the longest end of `text` that is a proper beginning of a stop string. */
function heldLength(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}
