// Tiles of attention in bf16 dot products (vdpbf16ps), in the layout of the matrix unit's (attention_tiles_amx.h): S =
// Q Kᵀ for up to 16 rows and tiles of keys, O += P V for up to 16 rows and tiles of the head. Every element is one
// chain of products in the order of the head (S) or of the keys (O), a pair at a time, whatever the grouping.
#pragma once

#include "attention_tiles_bf16.h"

namespace qformer::cpu::QF_ISA {

inline void begin_tiles() {}
inline void end_tiles() {}

// Products of R rows of A tiles with N B tiles over `pairs` pairs, 16 of them a step; B tiles of a step b_tile apart,
// those of the next b_step further. The sums, kTileFloats apart, start from zero where `fresh`.
template <int R, int N>
inline void multiply_pairs(const char* a, const char* b, int64_t b_step, int64_t b_tile, int64_t pairs, bool fresh,
                           float* sums) {
  Vf sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[r][n] = fresh ? zero() : load(sums + n * kTileFloats + r * 16);
  }
  for (; pairs > 0; pairs -= 16, a += kTileBytes, b += b_step) {
    const int64_t step_pairs = smaller(pairs, 16);
    for (int64_t p = 0; p < step_pairs; p++) {
      Vf w[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) w[n] = load(reinterpret_cast<const float*>(b + n * b_tile + p * 64));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Vf x = broadcast(*reinterpret_cast<const float*>(a + r * 64 + p * 4));
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[r][n] = DotBf16Products::mac(sum[r][n], x, w[n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) store(sums + n * kTileFloats + r * 16, sum[r][n]);
  }
}

// The same for `rows` rows, up to 16.
template <int N>
inline void multiply_rows(int64_t rows, const char* a, const char* b, int64_t b_step, int64_t b_tile, int64_t pairs,
                          bool fresh, float* sums) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) multiply_pairs<8, N>(a + r * 64, b, b_step, b_tile, pairs, fresh, sums + r * 16);
  for (; r + 3 <= rows; r += 3) multiply_pairs<3, N>(a + r * 64, b, b_step, b_tile, pairs, fresh, sums + r * 16);
  for (; r < rows; r++) multiply_pairs<1, N>(a + r * 64, b, b_step, b_tile, pairs, fresh, sums + r * 16);
}

// The same for 1 to 3 tiles.
inline void multiply_group(int64_t tiles, int64_t rows, const char* a, const char* b, int64_t b_step, int64_t b_tile,
                           int64_t pairs, bool fresh, float* sums) {
  switch (tiles) {
    case 1:
      return multiply_rows<1>(rows, a, b, b_step, b_tile, pairs, fresh, sums);
    case 2:
      return multiply_rows<2>(rows, a, b, b_step, b_tile, pairs, fresh, sums);
    default:
      return multiply_rows<3>(rows, a, b, b_step, b_tile, pairs, fresh, sums);
  }
}

inline void score_tiles(const TileScores& job) {
  const int64_t steps = (job.head_dim + 31) / 32;
  for (int64_t tile = job.begin; tile < job.end; tile += 3) {
    multiply_group(smaller(job.end - tile, 3), job.rows, job.q, job.keys + tile * steps * kTileBytes, kTileBytes,
                   steps * kTileBytes, (job.head_dim + 1) / 2, true, job.scores + tile * kTileFloats);
  }
}

inline void value_tiles(const TileValues& job) {
  const int64_t groups = (job.dim_tiles + 2) / 3, group = (job.dim_tiles + groups - 1) / groups;
  for (int64_t tile = 0; tile < job.dim_tiles; tile += group) {
    multiply_group(smaller(job.dim_tiles - tile, group), job.rows, job.weights + job.begin * kTileBytes,
                   job.values + (job.begin * job.dim_tiles + tile) * kTileBytes, job.dim_tiles * kTileBytes, kTileBytes,
                   (job.keys - 32 * job.begin + 1) / 2, job.fresh, job.o + tile * kTileFloats);
  }
}

}  // namespace qformer::cpu::QF_ISA
