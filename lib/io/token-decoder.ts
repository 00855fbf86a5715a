// Tokens → text, one token at a time: the `decoder` entry of tokenizer.json as a chain of small state machines. A stage holds
// back what a later token could still change and nothing else, so decoding a whole sequence and decoding it token by token are
// the same code and give the same text; the cost per token does not grow with the text.
// Behaviour follows the reference library `tokenizers`, also where it surprises: a run of byte tokens that is not valid UTF-8 as
// a whole becomes one U+FFFD per byte, valid characters inside it included. Hence a run is held until it ends.

import type { JsonFields } from './json-fields.js';

/** Turns tokens into text piece by piece. */
export interface TokenDecoder {
  /** Text that has become final with this token; empty while a character is incomplete. */
  push(token: string): string;
  /** The rest of the text. The decoder is then as new. */
  flush(): string;
}

interface Stage {
  push(token: string): string[];
  flush(): string[];
}

type StageFactory = () => Stage;

/** Compiles the decoder entry (undefined: tokens are joined by spaces). Throws UNSUPPORTED for an unknown type, FORMAT. */
export function compileDecoder(decoder: JsonFields | undefined): () => TokenDecoder {
  const factories = decoder === undefined ? [joinWithSpaces] : compileStages(decoder, { fused: false });
  return () => new Chain(factories.map((create) => create()));
}

class Chain implements TokenDecoder {
  constructor(private readonly stages: readonly Stage[]) {}

  push(token: string): string {
    return this.run([token], 0);
  }

  flush(): string {
    let text = '';
    for (const [i, stage] of this.stages.entries()) text += this.run(stage.flush(), i + 1);
    return text;
  }

  private run(tokens: string[], from: number): string {
    let current = tokens;
    for (let i = from; i < this.stages.length && current.length > 0; i++) {
      const stage = this.stages[i]!;
      current = current.length === 1 ? stage.push(current[0]!) : current.flatMap((token) => stage.push(token));
    }
    return current.join('');
  }
}

// `fused` is set by the first stage that makes one string of all tokens: what follows sees pieces of it.
interface CompileState {
  fused: boolean;
}

function compileStages(fields: JsonFields, state: CompileState): StageFactory[] {
  const type = fields.optionalString('type');
  switch (type) {
    case 'Sequence':
      return fields.objectList('decoders').flatMap((child) => compileStages(child, state));
    case 'Replace':
      return [compileReplace(fields, state)];
    case 'ByteFallback':
      return [requireUnfused(fields, state, () => new ByteFallback())];
    case 'Fuse':
      state.fused = true;
      return [];
    case 'Strip':
      return [compileStrip(fields, state)];
    case 'Metaspace':
      return [requireUnfused(fields, state, compileMetaspace(fields))];
    case 'WordPiece':
      return [requireUnfused(fields, state, compileWordPiece(fields))];
    case 'ByteLevel': {
      const stage = requireUnfused(fields, state, () => new ByteLevel());
      state.fused = true;
      return [stage];
    }
    default:
      throw fields.unsupported('type', type, 'a decoder of tokenizer.json');
  }
}

function requireUnfused(fields: JsonFields, state: CompileState, factory: StageFactory): StageFactory {
  if (state.fused) throw fields.unsupported('type', fields.raw('type'), 'after tokens were fused');
  return factory;
}

/** A stage without memory: each token is mapped on its own, told whether it is the first. */
function mapping(map: (token: string, first: boolean) => string): StageFactory {
  return () => {
    let first = true;
    return {
      push(token) {
        const result = map(token, first);
        first = false;
        return [result];
      },
      flush() {
        first = true;
        return [];
      },
    };
  };
}

const joinWithSpaces = mapping((token, first) => (first ? token : ` ${token}`));

function compileReplace(fields: JsonFields, state: CompileState): StageFactory {
  const pattern = fields.optionalObject('pattern')?.optionalString('String');
  const content = fields.optionalString('content') ?? '';
  if (pattern === undefined || pattern === '' || (state.fused && [...pattern].length > 1)) {
    throw fields.unsupported(
      'pattern',
      fields.raw('pattern'),
      'only a string, of one character after tokens were fused',
    );
  }
  return mapping((token) => token.replaceAll(pattern, content));
}

function compileStrip(fields: JsonFields, state: CompileState): StageFactory {
  const content = fields.optionalString('content') ?? ' ';
  const start = fields.integer('start', { min: 0, max: 1024, default: 0 });
  const stop = fields.integer('stop', { min: 0, max: 1024, default: 0 });
  if (content.length !== 1) throw fields.unsupported('content', content, 'one character');
  if (state.fused) return () => new FusedStrip(content, start, stop);
  return mapping((token) => {
    const { begin, end } = stripped(token, content, start, stop);
    return token.slice(begin, end);
  });
}

function stripped(token: string, content: string, start: number, stop: number): { begin: number; end: number } {
  let begin = 0;
  while (begin < start && token[begin] === content) begin++;
  let end = token.length;
  while (end > begin && token.length - end < stop && token[end - 1] === content) end--;
  return { begin, end };
}

class FusedStrip implements Stage {
  private left: number;
  private held = '';

  constructor(
    private readonly content: string,
    private readonly start: number,
    private readonly stop: number,
  ) {
    this.left = start;
  }

  push(piece: string): string[] {
    let begin = 0;
    while (this.left > 0 && begin < piece.length) {
      if (piece[begin] !== this.content) this.left = 0;
      else [begin, this.left] = [begin + 1, this.left - 1];
    }
    const text = this.held + piece.slice(begin);
    const { end } = stripped(text, this.content, 0, this.stop);
    this.held = text.slice(end);
    return end > 0 ? [text.slice(0, end)] : [];
  }

  flush(): string[] {
    // at most `stop` characters were held, all of them to be stripped
    this.held = '';
    this.left = this.start;
    return [];
  }
}

class ByteFallback implements Stage {
  private run: number[] = [];

  push(token: string): string[] {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(token);
    if (byte === null) return [...this.flush(), token];
    this.run.push(Number.parseInt(byte[1]!, 16));
    return [];
  }

  flush(): string[] {
    if (this.run.length === 0) return [];
    const bytes = Uint8Array.from(this.run);
    this.run = [];
    try {
      return [new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)];
    } catch {
      return Array.from(bytes, () => '\ufffd');
    }
  }
}

// In the first token every mark is dropped, not only one: so the reference does.
function compileMetaspace(fields: JsonFields): StageFactory {
  const replacement = fields.optionalString('replacement') ?? '▁';
  const keepFirst =
    fields.optionalString('prepend_scheme') === 'never' || fields.optionalBoolean('add_prefix_space') === false;
  return mapping((token, first) => token.replaceAll(replacement, first && !keepFirst ? '' : ' '));
}

function compileWordPiece(fields: JsonFields): StageFactory {
  const prefix = fields.optionalString('prefix') ?? '##';
  const cleanup = fields.optionalBoolean('cleanup') ?? true;
  return mapping((token, first) => {
    const joins = prefix !== '' && token.startsWith(prefix);
    const spaced = first ? token : joins ? token.slice(prefix.length) : ` ${token}`;
    return cleanup ? cleanUp(spaced) : spaced;
  });
}

// prettier-ignore
const CLEANUP: readonly (readonly [string, string])[] = [
  [' .', '.'], [' ?', '?'], [' !', '!'], [' ,', ','], [" ' ", "'"], [" n't", "n't"], [" 'm", "'m"],
  [' do not', " don't"], [" 's", "'s"], [" 've", "'ve"], [" 're", "'re"],
];

function cleanUp(token: string): string {
  return CLEANUP.reduce((text, [from, to]) => text.replaceAll(from, to), token);
}

// Byte-level tokens write each byte as a printable character; a token with any other character stands for itself.
class ByteLevel implements Stage {
  private decoder = newLossyDecoder();

  push(token: string): string[] {
    const text = this.decoder.decode(tokenBytes(token), { stream: true });
    return text === '' ? [] : [text];
  }

  flush(): string[] {
    const text = this.decoder.decode();
    this.decoder = newLossyDecoder();
    return text === '' ? [] : [text];
  }
}

function newLossyDecoder(): InstanceType<typeof TextDecoder> {
  return new TextDecoder('utf-8', { ignoreBOM: true });
}

function tokenBytes(token: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of token) {
    const byte = BYTE_OF_CHARACTER.get(character);
    if (byte === undefined) return new TextEncoder().encode(token);
    bytes.push(byte);
  }
  return Uint8Array.from(bytes);
}

// GPT-2's table: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards.
const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = (() => {
  const table = new Map<string, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    table.set(String.fromCharCode(printable ? byte : next++), byte);
  }
  return table;
})();
