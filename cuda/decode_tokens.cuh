// RMS norm of one row by a block of 256 threads, for the prologue of the streaming kernels and for the kernel that
// prepares tokens. Chunk c of 8 columns belongs to thread c % 256; a thread adds its squares in ascending order, then
// the butterfly of its warp, then the 8 warps in order: the same bits wherever it runs. Traffic: x twice (the second
// time from L1) and the norm's weight once per block.
#pragma once

#include "decode_stream.cuh"
#include "decode_tokens.h"
#include "prims/math.h"

namespace qformer::cuda {

inline constexpr int kStagedTokens = 4;  // most tokens that a block normalises itself

// Columns per token in shared memory: whole steps, and rows 64 bytes apart modulo the 128 of all banks.
QF_HOST_DEVICE constexpr int staged_pitch(int k) { return (k + kStreamStep - 1) / kStreamStep * kStreamStep + 32; }

// row[column, column + 8) as f32, zeros from k on. `wide`: rows begin on 16 bytes.
template <class T>
QF_DEVICE void load_token_chunk(Global<const T> row, int column, int k, bool wide, float (&v)[8]) {
  if (wide && column + 8 <= k) {
    constexpr int kPart = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < 8 / kPart; ++part) {
      const Vec<T, kPart> values = row.template load_vec<kPart>(column + part * kPart);
#pragma unroll
      for (int e = 0; e < kPart; ++e) v[part * kPart + e] = to_float(values[e]);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = column + e < k ? to_float(row.load(column + e)) : 0.0f;
}

// This thread's part of the sum of squares of a row, added up over its warp.
template <class T>
QF_DEVICE float warp_square_sum(Global<const T> row, int k, bool wide) {
  float square = 0.0f;
  for (int column = static_cast<int>(threadIdx.x) * 8; column < k; column += kStreamThreads * 8) {
    float v[8];
    load_token_chunk(row, column, k, wide, v);
#pragma unroll
    for (int e = 0; e < 8; ++e) square = fmaf(v[e], v[e], square);
  }
  return warp_sum(square);
}

// 1 / rms from the 8 warps' sums of squares.
QF_DEVICE float norm_scale(Shared<const float> warp_sums, int k, float eps) {
  float sum = warp_sums.load(0);
  for (int warp = 1; warp < kStreamWarps; ++warp) sum += warp_sums.load(warp);
  return 1.0f / sqrtf(sum / static_cast<float>(k) + eps);
}

// v = v * scale * weight
QF_DEVICE void normalise_chunk(float (&v)[8], float scale, Global<const float> weight, int column, int k,
                               bool wide_weight) {
  float w[8];
  load_token_chunk(weight, column, k, wide_weight, w);
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = v[e] * scale * w[e];
}

// Rounds v to T and stores it, in global or shared memory.
template <class T, class Pointer>
QF_DEVICE void store_token_chunk(Pointer to, const float (&v)[8]) {
  constexpr int kPart = 16 / sizeof(T);
#pragma unroll
  for (int part = 0; part < 8 / kPart; ++part) {
    Vec<T, kPart> values;
#pragma unroll
    for (int e = 0; e < kPart; ++e) values[e] = from_float<T>(v[part * kPart + e]);
    to.template store_vec<kPart>(part * kPart, values);
  }
}

// Normalises the tokens, rows on 16 bytes and k % 8 == 0, into `staged` with zeros behind k. Ends with a barrier.
template <class T>
QF_DEVICE void stage_tokens(const DecodeTokens& tokens, Shared<T> staged, Shared<float> warp_sums) {
  const Global<const T> x(static_cast<const T*>(tokens.x));
  const Global<const float> weight(tokens.norm_weight);
  const int pitch = staged_pitch(tokens.k);
  for (int r = 0; r < tokens.m; ++r) {
    const float sum = warp_square_sum(x + r * tokens.ldx, tokens.k, true);
    if (stream_lane() == 0) warp_sums.store(r * kStreamWarps + stream_warp(), sum);
  }
  __syncthreads();
  for (int r = 0; r < tokens.m; ++r) {
    const float scale = norm_scale(warp_sums + r * kStreamWarps, tokens.k, tokens.norm_eps);
    for (int column = static_cast<int>(threadIdx.x) * 8; column < pitch; column += kStreamThreads * 8) {
      float v[8] = {};
      if (column < tokens.k) {
        load_token_chunk(x + r * tokens.ldx, column, tokens.k, true, v);
        normalise_chunk(v, scale, weight, column, tokens.k, true);
      }
      store_token_chunk<T>(staged + (r * pitch + column), v);
    }
  }
  __syncthreads();
}

}  // namespace qformer::cuda
