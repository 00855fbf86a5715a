// Tiles of attention on the matrix unit: S = Q Kᵀ for 16 rows and up to four tiles of keys, O += P V for 16 rows and up
// to four tiles of the head. Every element is one chain of tile instructions, in the order of the head (S) or of the
// keys (O), whatever the grouping.
#pragma once

#include "linear_amx.h"

namespace qformer::cpu::QF_ISA {

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

// Products of A tiles, one a step, with `Tiles` B tiles of each step; B tiles of a step b_tile apart. The sums,
// kTileFloats apart, start from zero where `fresh`.
template <int Tiles>
inline void multiply_steps(const char* a, const char* b, int64_t b_step, int64_t b_tile, int64_t steps, bool fresh,
                           float* sums) {
  if (fresh) {
    _tile_zero(0);
    if constexpr (Tiles > 1) _tile_zero(1);
    if constexpr (Tiles > 2) _tile_zero(2);
    if constexpr (Tiles > 3) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if constexpr (Tiles > 1) _tile_loadd(1, sums + kTileFloats, 64);
    if constexpr (Tiles > 2) _tile_loadd(2, sums + 2 * kTileFloats, 64);
    if constexpr (Tiles > 3) _tile_loadd(3, sums + 3 * kTileFloats, 64);
  }
  for (int64_t s = 0; s < steps; s++, a += kTileBytes, b += b_step) {
    _tile_loadd(6, a, 64);
    _tile_loadd(7, b, 64);
    _tile_dpbf16ps(0, 6, 7);
    if constexpr (Tiles > 1) {
      _tile_loadd(5, b + b_tile, 64);
      _tile_dpbf16ps(1, 6, 5);
    }
    if constexpr (Tiles > 2) {
      _tile_loadd(4, b + 2 * b_tile, 64);
      _tile_dpbf16ps(2, 6, 4);
    }
    if constexpr (Tiles > 3) {
      _tile_loadd(7, b + 3 * b_tile, 64);
      _tile_dpbf16ps(3, 6, 7);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (Tiles > 1) _tile_stored(1, sums + kTileFloats, 64);
  if constexpr (Tiles > 2) _tile_stored(2, sums + 2 * kTileFloats, 64);
  if constexpr (Tiles > 3) _tile_stored(3, sums + 3 * kTileFloats, 64);
}

// The same for `tiles` from 1 to 4.
inline void multiply_group(int64_t tiles, const char* a, const char* b, int64_t b_step, int64_t b_tile, int64_t steps,
                           bool fresh, float* sums) {
  switch (tiles) {
    case 1:
      return multiply_steps<1>(a, b, b_step, b_tile, steps, fresh, sums);
    case 2:
      return multiply_steps<2>(a, b, b_step, b_tile, steps, fresh, sums);
    case 3:
      return multiply_steps<3>(a, b, b_step, b_tile, steps, fresh, sums);
    default:
      return multiply_steps<4>(a, b, b_step, b_tile, steps, fresh, sums);
  }
}

// scores of 16 rows with key tiles [begin, end); q: [step], keys: [key tile][step], scores: [key tile]
inline void score_tiles(const char* q, const char* keys, int64_t steps, int64_t begin, int64_t end, float* scores) {
  for (int64_t tile = begin; tile < end; tile += 4) {
    multiply_group(smaller(end - tile, 4), q, keys + tile * steps * kTileBytes, kTileBytes, steps * kTileBytes, steps,
                   true, scores + tile * kTileFloats);
  }
}

// o of 16 rows over steps [begin, end) of 32 keys; weights: [step], values: [step][dim tile], o: [dim tile]
inline void value_tiles(const char* weights, const char* values, int64_t dim_tiles, int64_t begin, int64_t end,
                        bool fresh, float* o) {
  const int64_t groups = (dim_tiles + 3) / 4, group = (dim_tiles + groups - 1) / groups;
  for (int64_t tile = 0; tile < dim_tiles; tile += group) {
    multiply_group(smaller(dim_tiles - tile, group), weights + begin * kTileBytes,
                   values + (begin * dim_tiles + tile) * kTileBytes, dim_tiles * kTileBytes, kTileBytes, end - begin,
                   fresh, o + tile * kTileFloats);
  }
}

}  // namespace qformer::cpu::QF_ISA
