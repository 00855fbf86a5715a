// Per-ISA part of the norm family: one row of layer norm and of RMS norm.
// Layer norm takes the mean first and then the variance of the differences, with the sum of the differences as
// correction of the mean's own rounding: rows whose mean is large against their spread keep full precision. Sums run in
// four f32 vectors added in a fixed tree. The row stays in L1 between the passes.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

// Calls body(i, count, j) for every vector of n elements; j = 0..3 numbers the accumulator, count < kLanes only at the
// end.
template <class Body>
inline void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    body(i, kLanes, 0);
    body(i + kLanes, kLanes, 1);
    body(i + 2 * kLanes, kLanes, 2);
    body(i + 3 * kLanes, kLanes, 3);
  }
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes, 0);
  if (i < n) body(i, n - i, 0);
}

inline Vf load_count(const float* p, int64_t count) { return count == kLanes ? load(p) : load_partial(p, count); }

inline void store_count(float* p, Vf value, int64_t count) {
  count == kLanes ? store(p, value) : store_partial(p, value, count);
}

inline float add_four(const Vf (&sum)[4]) { return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])); }

// 1 in the first `count` lanes, 0 in the others.
inline Vf lane_mask(int64_t count) {
  float ones[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) ones[i] = 1.0f;
  return load(ones);
}

inline void layer_norm_row(const float* x, const float* weight, const float* bias, float* y, int64_t cols, float eps) {
  const float count_of_cols = static_cast<float>(cols);
  Vf sum[4] = {zero(), zero(), zero(), zero()};
  for_each_vector(cols, [&](int64_t i, int64_t count, int j) { sum[j] = sum[j] + load_count(x + i, count); });
  const Vf mean = broadcast(add_four(sum) / count_of_cols);

  const Vf last = lane_mask(cols % kLanes);
  Vf drift[4] = {zero(), zero(), zero(), zero()}, square[4] = {zero(), zero(), zero(), zero()};
  for_each_vector(cols, [&](int64_t i, int64_t count, int j) {
    Vf d = load_count(x + i, count) - mean;
    if (count < kLanes) d = d * last;
    drift[j] = drift[j] + d;
    square[j] = fma(d, d, square[j]);
  });
  const float correction = add_four(drift) / count_of_cols;
  const float variance = add_four(square) / count_of_cols - correction * correction;
  const Vf scale = broadcast(1.0f / __builtin_sqrtf((variance < 0.0f ? 0.0f : variance) + eps));
  const Vf shift = broadcast(correction);
  for_each_vector(cols, [&](int64_t i, int64_t count, int) {
    const Vf normal = ((load_count(x + i, count) - mean) - shift) * scale;
    store_count(y + i, fma(normal, load_count(weight + i, count), load_count(bias + i, count)), count);
  });
}

inline void rms_norm_row(const float* x, const float* weight, float* y, int64_t cols, float eps) {
  Vf square[4] = {zero(), zero(), zero(), zero()};
  for_each_vector(cols, [&](int64_t i, int64_t count, int j) {
    const Vf value = load_count(x + i, count);
    square[j] = fma(value, value, square[j]);
  });
  const Vf scale = broadcast(1.0f / __builtin_sqrtf(add_four(square) / static_cast<float>(cols) + eps));
  for_each_vector(cols, [&](int64_t i, int64_t count, int) {
    store_count(y + i, load_count(x + i, count) * scale * load_count(weight + i, count), count);
  });
}

constexpr NormKernels kNormKernels = {&layer_norm_row, &rms_norm_row};

}  // namespace qformer::cpu::QF_ISA
