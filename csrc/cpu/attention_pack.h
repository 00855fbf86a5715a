// Brings one block of keys and values into L1/L2 in the layout of the register tiles: keys transposed to
// [head_dim, kKeyBlock], values as [kKeyBlock, padded head_dim] with zeros in the padding, both widened to f32.
#pragma once

#include "attention_job.h"
#include "backend/dtype.h"
#include "simd.h"
#include "transpose.h"

namespace qformer::cpu::QF_ISA {

// Elements [i, i + count) of a row, widened to f32; lanes from `count` on are 0.
template <int32_t Dtype>
inline Vf load_row(const void* row, int64_t i, int64_t count) {
  if constexpr (Dtype == QF_F32) {
    const float* p = static_cast<const float*>(row) + i;
    return count >= kLanes ? load(p) : load_partial(p, count);
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(row) + i;
    if constexpr (Dtype == QF_F16) return count >= kLanes ? load_f16(p) : load_f16_partial(p, count);
    return count >= kLanes ? load_bf16(p) : load_bf16_partial(p, count);
  }
}

// The address of the cache row of key j.
template <int32_t Dtype>
inline const void* key_row(const AttentionJob& job, const void* base, int64_t stride, int64_t j) {
  const int64_t slot =
      job.block_table == nullptr
          ? j
          : static_cast<int64_t>(job.block_table[j / job.block_size]) * job.block_size + j % job.block_size;
  return static_cast<const char*>(base) + slot * stride * (Dtype == QF_F32 ? 4 : 2);
}

// keys: [head_dim, kKeyBlock]; columns of whole vectors up to `count` are written, beyond `count` with zeros.
template <int32_t Dtype>
inline void pack_keys(const AttentionJob& job, int64_t first, int64_t count, float* keys) {
  for (int64_t column = 0; column < count; column += kLanes) {
    const void* rows[kLanes];
    const int64_t present = count - column < kLanes ? count - column : kLanes;
    for (int64_t i = 0; i < present; ++i) rows[i] = key_row<Dtype>(job, job.k, job.k_stride, first + column + i);
    for (int64_t d = 0; d < job.head_dim; d += kLanes) {
      const int64_t width = job.head_dim - d < kLanes ? job.head_dim - d : kLanes;
      Vf tile[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) tile[i] = i < present ? load_row<Dtype>(rows[i], d, width) : zero();
      transpose(tile);
      for (int64_t i = 0; i < width; ++i) store(keys + (d + i) * kKeyBlock + column, tile[i]);
    }
  }
}

// values: [count, padded]
template <int32_t Dtype>
inline void pack_values(const AttentionJob& job, int64_t first, int64_t count, int64_t padded, float* values) {
  for (int64_t key = 0; key < count; ++key, values += padded) {
    const void* row = key_row<Dtype>(job, job.v, job.v_stride, first + key);
    for (int64_t d = 0; d < padded; d += kLanes) {
      const int64_t width = job.head_dim - d;
      store(values + d, width > 0 ? load_row<Dtype>(row, d, width) : zero());
    }
  }
}

}  // namespace qformer::cpu::QF_ISA
