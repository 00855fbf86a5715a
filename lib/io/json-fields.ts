// Typed reading of an untrusted JSON object: each accessor checks type and range and throws FORMAT with the file, the full key
// path (`text_config.num_hidden_layers`) and the value found. As in transformers, null counts as absent and gives the default.

import { QFormerError, describe } from '../errors.js';
import { isJsonObject, type JsonObject } from './files.js';

/** What an integer or number must satisfy: bounds are inclusive; `default` makes it optional. */
export interface NumberRule {
  min: number;
  max: number;
  default?: number;
}

/** One object of a JSON file with its place in it. Keys are looked up as own properties only. */
export class JsonFields {
  constructor(
    readonly file: string,
    private readonly object: JsonObject,
    private readonly path: string = '',
  ) {}

  /** The raw value, undefined when absent or null. */
  raw(key: string): unknown {
    return Object.hasOwn(this.object, key) ? (this.object[key] ?? undefined) : undefined;
  }

  /** True when the key is present, even as null. */
  has(key: string): boolean {
    return Object.hasOwn(this.object, key);
  }

  /** A whole number within bounds. Throws FORMAT, also when absent without a default. */
  integer(key: string, rule: NumberRule): number {
    return this.optionalInteger(key, rule) ?? rule.default ?? this.missing(key);
  }

  /** As `integer`, but undefined when absent. */
  optionalInteger(key: string, rule: NumberRule): number | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!Number.isSafeInteger(value) || !inRange(value as number, rule)) {
      throw this.fault(key, `must be a whole number from ${rule.min} to ${rule.max}`, value);
    }
    return value as number;
  }

  /** A finite number within bounds. Throws FORMAT, also when absent without a default. */
  number(key: string, rule: NumberRule): number {
    return this.optionalNumber(key, rule) ?? rule.default ?? this.missing(key);
  }

  /** As `number`, but undefined when absent. */
  optionalNumber(key: string, rule: NumberRule): number | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (typeof value !== 'number' || !inRange(value, rule)) {
      throw this.fault(key, `must be a number from ${rule.min} to ${rule.max}`, value);
    }
    return value;
  }

  /** True or false; undefined when absent. Throws FORMAT. */
  optionalBoolean(key: string): boolean | undefined {
    const value = this.raw(key);
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.fault(key, 'must be true or false', value);
  }

  /** A string; undefined when absent. Throws FORMAT. */
  optionalString(key: string): string | undefined {
    const value = this.raw(key);
    if (value === undefined || typeof value === 'string') return value;
    throw this.fault(key, 'must be a string', value);
  }

  /** The nested object; undefined when absent. Throws FORMAT. */
  optionalObject(key: string): JsonFields | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!isJsonObject(value)) throw this.fault(key, 'must be an object', value);
    return new JsonFields(this.file, value, `${this.path}${key}.`);
  }

  /** The objects of a list. Throws FORMAT, also when absent. */
  objectList(key: string): JsonFields[] {
    const list = this.optionalList(key, 'objects', isJsonObject) ?? this.missing(key);
    return list.map((object, i) => new JsonFields(this.file, object, `${this.path}${key}[${i}].`));
  }

  /** The elements of a list, each checked by `accept`; undefined when absent. Throws FORMAT naming the element. */
  optionalList<T>(key: string, what: string, accept: (value: unknown) => value is T): T[] | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) throw this.fault(key, `must be a list of ${what}`, value);
    const wrong = value.findIndex((element) => !accept(element));
    if (wrong >= 0) throw this.fault(`${key}[${wrong}]`, `must be one of a list of ${what}`, value[wrong]);
    return value as T[];
  }

  /** Throws UNSUPPORTED when a boolean switch is not at the only value that is implemented. */
  requireBoolean(key: string, expected: boolean): void {
    const value = this.optionalBoolean(key);
    if (value !== undefined && value !== expected) throw this.unsupported(key, value);
  }

  /** A FORMAT error: `file: path.key must …, got …`. */
  fault(key: string, rule: string, value: unknown): QFormerError {
    const where = this.path + key;
    return new QFormerError('FORMAT', `${this.file}: ${where} ${rule}, got ${describe(value)}`, {
      file: this.file,
      key: where,
    });
  }

  /** An UNSUPPORTED error for a value that is valid but not implemented; `hint` says what is. */
  unsupported(key: string, value: unknown, hint = ''): QFormerError {
    const where = this.path + key;
    const message = `${this.file}: ${where} = ${describe(value)} is not supported${hint === '' ? '' : ` (${hint})`}`;
    return new QFormerError('UNSUPPORTED', message, { file: this.file, key: where, value });
  }

  private missing(key: string): never {
    throw new QFormerError('FORMAT', `${this.file}: ${this.path}${key} is missing`, {
      file: this.file,
      key: this.path + key,
    });
  }
}

function inRange(value: number, rule: NumberRule): boolean {
  return value >= rule.min && value <= rule.max;
}
