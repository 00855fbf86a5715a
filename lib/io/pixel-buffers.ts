// Memory of pixels that the worker is done with, for the images that come next. The kernel hands out fresh memory page by
// page: on some hosts that takes the main thread longer than sharp's threads need to decode the picture.

/** What is kept at most, bytes: one picture of 11 megapixels, or seven of 1500 × 1000. */
const MAX_BYTES = 32 * 2 ** 20;

/** Buffers to be used again. */
export class PixelBuffers {
  /** In ascending order of size. */
  readonly #free: ArrayBuffer[] = [];

  /** Bytes that wait to be used again. */
  get bytes(): number {
    return this.#free.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** `bytes` bytes of any content; the buffer behind them may be longer. */
  take(bytes: number): Uint8Array<ArrayBuffer> {
    const fitting = this.#free.findIndex(({ byteLength }) => byteLength >= bytes);
    const buffer = fitting < 0 ? new ArrayBuffer(bytes) : this.#free.splice(fitting, 1)[0]!;
    return new Uint8Array(buffer, 0, bytes);
  }

  /** Takes buffers that nobody uses any longer. The largest are kept. */
  giveBack(buffers: readonly ArrayBuffer[]): void {
    this.#free.push(...buffers.filter(({ byteLength }) => byteLength > 0 && byteLength <= MAX_BYTES));
    this.#free.sort((a, b) => a.byteLength - b.byteLength);
    while (this.bytes > MAX_BYTES) this.#free.shift();
  }
}
