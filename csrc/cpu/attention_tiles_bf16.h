// What the two kinds of tiles of attention with bf16 products share (attention_tiles_amx.h, attention_tiles_dot.h):
// tiles of 1 KiB as a matrix unit has them. A: 16 rows of 32 numbers. B: 16 pairs of rows, each with both numbers of 16
// columns side by side. C: 16 rows of 16 sums in f32.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "linear_dot.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

// Scores of `rows` rows with key tiles [begin, end): q: [step of 32 dims], keys: [key tile][step], scores: [key tile].
struct TileScores {
  const char* q;
  const char* keys;
  int64_t head_dim, rows, begin, end;
  float* scores;
};

// o of `rows` rows over keys [32 * begin, keys): weights: [step of 32 keys], values: [step][tile of 16 dims], o: [dim
// tile], which starts from zero where `fresh`.
struct TileValues {
  const char* weights;
  const char* values;
  int64_t dim_tiles, rows, begin, keys;
  bool fresh;
  float* o;
};

// Two vectors of f32 as bf16, side by side.
inline __m512i bf16_of(Vf low, Vf high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)); }

// 16-bit numbers a0..a15, b0..b15 as a0, b0, a1, b1, ...
inline __m512i interleave_halves(__m512i halves) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

// Lanes below n, which may lie outside 0 to 16.
inline __mmask16 lanes_below(int64_t n) { return n >= 16 ? __mmask16{0xffff} : n <= 0 ? __mmask16{0} : first_lanes(n); }

}  // namespace qformer::cpu::QF_ISA
