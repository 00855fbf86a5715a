// Tiles of attention on the matrix unit: S = Q Kᵀ for 16 rows and up to four tiles of keys, O += P V for 16 rows and up
// to four tiles of the head. Every element is one chain of tile instructions, in the order of the head (S) or of the
// keys (O), whatever the grouping.
#pragma once

#include "attention_tiles_bf16.h"
#include "linear_amx.h"

namespace qformer::cpu::QF_ISA {

inline void begin_tiles() { configure_tiles(16); }
inline void end_tiles() { release_tiles(); }

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

// All 16 rows, whatever their number.
inline void score_tiles(const TileScores& job) {
  const int64_t steps = (job.head_dim + 31) / 32;
  for (int64_t tile = job.begin; tile < job.end; tile += 4) {
    multiply_group(smaller(job.end - tile, 4), job.q, job.keys + tile * steps * kTileBytes, kTileBytes,
                   steps * kTileBytes, steps, true, job.scores + tile * kTileFloats);
  }
}

inline void value_tiles(const TileValues& job) {
  const int64_t groups = (job.dim_tiles + 3) / 4, group = (job.dim_tiles + groups - 1) / groups;
  for (int64_t tile = 0; tile < job.dim_tiles; tile += group) {
    multiply_group(smaller(job.dim_tiles - tile, group), job.weights + job.begin * kTileBytes,
                   job.values + (job.begin * job.dim_tiles + tile) * kTileBytes, job.dim_tiles * kTileBytes, kTileBytes,
                   (job.keys + 31) / 32 - job.begin, job.fresh, job.o + tile * kTileFloats);
  }
}

}  // namespace qformer::cpu::QF_ISA
