// Register tiles of attention: S = Q Kᵀ for R rows and a few vectors of keys, O += P V for R rows and a few vectors of
// the head. Every element is one chain of fused multiply-adds in the order of the head (S) or of the keys (O), whatever
// the tile size: that is what makes a row's bits independent of how rows were grouped.
#pragma once

#include "attention_job.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

constexpr int kTileRows = 6;                        // 6 rows x 4 vectors = 24 accumulators where there are 32 registers
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;  // otherwise 12
constexpr int64_t kBlockVectors = kKeyBlock / kLanes;

// scores[r][key] for N vectors of keys. q: R rows, q_stride apart; keys: [head_dim, kKeyBlock], transposed.
template <int R, int N>
inline void score_tile(const float* q, int64_t q_stride, const float* keys, int64_t head_dim, float* scores) {
  Vf sum[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) sum[r][n] = zero();
  }
  for (int64_t d = 0; d < head_dim; ++d, keys += kKeyBlock) {
    Vf key[N];
    for (int n = 0; n < N; ++n) key[n] = load(keys + n * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vf query = broadcast(q[r * q_stride + d]);
      for (int n = 0; n < N; ++n) sum[r][n] = fma(query, key[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(scores + r * kKeyBlock + n * kLanes, sum[r][n]);
  }
}

// The first `vectors` vectors of keys.
template <int R>
inline void score_rows(const float* q, int64_t q_stride, const float* keys, int64_t head_dim, int64_t vectors,
                       float* scores) {
  int64_t n = 0;
  for (; n + kTileVectors <= vectors; n += kTileVectors) {
    score_tile<R, kTileVectors>(q, q_stride, keys + n * kLanes, head_dim, scores + n * kLanes);
  }
  for (; n + 2 <= vectors; n += 2) score_tile<R, 2>(q, q_stride, keys + n * kLanes, head_dim, scores + n * kLanes);
  if (n < vectors) score_tile<R, 1>(q, q_stride, keys + n * kLanes, head_dim, scores + n * kLanes);
}

// out[r][d] += sum over keys [begin, end) of p[r][key] * values[key][d] for N vectors of the head.
template <int R, int N>
inline void value_tile(const float* p, const float* values, int64_t stride, int64_t begin, int64_t end, float* out) {
  Vf sum[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) sum[r][n] = load(out + r * stride + n * kLanes);
  }
  for (int64_t key = begin; key < end; ++key) {
    Vf value[N];
    for (int n = 0; n < N; ++n) value[n] = load(values + key * stride + n * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vf weight = broadcast(p[r * kKeyBlock + key]);
      for (int n = 0; n < N; ++n) sum[r][n] = fma(weight, value[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(out + r * stride + n * kLanes, sum[r][n]);
  }
}

// All vectors of the head; values and out have rows of `stride` = the padded head_dim.
template <int R>
inline void value_rows(const float* p, const float* values, int64_t stride, int64_t begin, int64_t end, float* out) {
  if (begin >= end) return;
  const int64_t vectors = stride / kLanes;
  int64_t n = 0;
  if constexpr (kTileVectors > 2) {
    // 3 + 3 and 3 + 2 load less per multiply-add than 4 + 2 and 4 + 1
    const int64_t left = vectors % kTileVectors;
    while (vectors - n >= kTileVectors && !(left != 0 && left < 3 && vectors - n < 2 * kTileVectors)) {
      value_tile<R, kTileVectors>(p, values + n * kLanes, stride, begin, end, out + n * kLanes);
      n += kTileVectors;
    }
    for (; vectors - n >= 3; n += 3) value_tile<R, 3>(p, values + n * kLanes, stride, begin, end, out + n * kLanes);
  }
  for (; vectors - n >= 2; n += 2) value_tile<R, 2>(p, values + n * kLanes, stride, begin, end, out + n * kLanes);
  if (n < vectors) value_tile<R, 1>(p, values + n * kLanes, stride, begin, end, out + n * kLanes);
}

}  // namespace qformer::cpu::QF_ISA
