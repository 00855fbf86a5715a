// Bicubic resampling of a position table, as PyTorch does it for `interpolate_pos_encoding`: kernel a = −0.75, source
// coordinate (o + 0.5) · in/out − 0.5, taps beyond the edge repeat the edge, no antialiasing when shrinking.
// Separable: columns first, then rows; rows · columns · dim · 8 products, once per grid.

const A = -0.75;

/** table: [1 + grid², dim], class row first → [1 + rows · columns, dim], class row copied. */
export function resamplePositions(
  table: Float32Array,
  grid: number,
  rows: number,
  columns: number,
  dim: number,
): Float32Array {
  const out = new Float32Array((1 + rows * columns) * dim);
  out.set(table.subarray(0, dim));
  const wide = resampleAxis(table.subarray(dim), grid, grid, columns, dim);
  out.set(resampleAxis(wide, 1, grid, rows, columns * dim), dim);
  return out;
}

/** x: [outer, length, inner] → [outer, target, inner], four taps per output along the middle axis. */
function resampleAxis(x: Float32Array, outer: number, length: number, target: number, inner: number): Float32Array {
  const y = new Float32Array(outer * target * inner);
  for (let o = 0; o < target; o++) {
    const centre = ((o + 0.5) * length) / target - 0.5;
    const first = Math.floor(centre) - 1;
    const weights = cubicWeights(centre - Math.floor(centre));
    weights.forEach((weight, tap) => {
      const source = Math.min(Math.max(first + tap, 0), length - 1);
      for (let block = 0; block < outer; block++) {
        const from = (block * length + source) * inner;
        const to = (block * target + o) * inner;
        for (let i = 0; i < inner; i++) y[to + i] = y[to + i]! + weight * x[from + i]!;
      }
    });
  }
  return y;
}

/** Weights of the taps at −1, 0, 1, 2 for a point `t` of the way from tap 0 to tap 1 (Keys 1981). */
function cubicWeights(t: number): number[] {
  const near = (d: number) => ((A + 2) * d - (A + 3)) * d * d + 1;
  const far = (d: number) => ((A * d - 5 * A) * d + 8 * A) * d - 4 * A;
  return [far(t + 1), near(t), near(1 - t), far(2 - t)];
}
