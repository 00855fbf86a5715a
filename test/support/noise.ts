// Arbitrary numbers, the same every time.

/** `count` numbers in [-2, 2) of a xorshift generator. */
export function noise(count: number, seed: number): Float32Array {
  let state = seed * 2654435761 + 1;
  return Float32Array.from({ length: count }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state | 0) / 2 ** 30;
  });
}
