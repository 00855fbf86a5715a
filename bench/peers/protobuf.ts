// As much of the protobuf wire format as an ONNX file needs: varints, 32-bit floats, and byte strings; a message is a byte string.
// https://protobuf.dev/programming-guides/encoding/

const WIRE = { varint: 0, bytes: 2, fixed32: 5 } as const;

/** One message under construction; fields may be written in any order, repeated ones again and again. */
export class Message {
  readonly #parts: Buffer[] = [];

  /** int32, int64, bool or enum; not negative. */
  int(field: number, value: number): this {
    this.#parts.push(varint(field * 8 + WIRE.varint), varint(value));
    return this;
  }
  float(field: number, value: number): this {
    const bytes = Buffer.alloc(4);
    bytes.writeFloatLE(value);
    this.#parts.push(varint(field * 8 + WIRE.fixed32), bytes);
    return this;
  }
  bytes(field: number, value: Buffer | string): this {
    const bytes = typeof value === 'string' ? Buffer.from(value) : value;
    this.#parts.push(varint(field * 8 + WIRE.bytes), varint(bytes.length), bytes);
    return this;
  }
  message(field: number, value: Message): this {
    return this.bytes(field, value.encode());
  }
  encode(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  bytes.push(rest);
  return Buffer.from(bytes);
}
