// Per-ISA part of the softmax family: softmax and log-softmax of one row, and the row maximum and shifted exponential
// that sampling uses. Three passes over a row that stays in cache after the first; sums run in f32 lanes in one fixed
// order.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

// NaN where the row has one, -inf where it is empty.
inline float row_max(const float* x, int64_t n) {
  const Vf lowest = broadcast(-__builtin_inff());
  Vf best[4] = {lowest, lowest, lowest, lowest}, nan = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const Vf value = load(x + i + j * kLanes);
      best[j] = vmax(best[j], value);
      nan = select(is_nan(value), value, nan);
    }
  }
  float lanes[kLanes];
  store(lanes, nan);
  for (float lane : lanes) {
    if (lane != lane) return lane;
  }
  float max = reduce_max(vmax(vmax(best[0], best[1]), vmax(best[2], best[3])));
  for (; i < n; ++i) {
    if (x[i] != x[i]) return x[i];
    if (x[i] > max) max = x[i];
  }
  return max;
}

// y = exp(x - shift)
inline void exp_shifted(const float* x, float shift, float* y, int64_t n) {
  const Vf offset = broadcast(shift);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, exp(load(x + i) - offset));
  if (i < n) store_partial(y + i, exp(load_partial(x + i, n - i) - offset), n - i);
}

// The sum of exp(x - shift); where y is not null the exponentials are kept there.
inline float exp_sum(const float* x, float shift, float* y, int64_t n) {
  const Vf offset = broadcast(shift);
  Vf sum[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    for (int j = 0; j < 2; ++j) {
      const Vf value = exp(load(x + i + j * kLanes) - offset);
      sum[j] = sum[j] + value;
      if (y != nullptr) store(y + i + j * kLanes, value);
    }
  }
  for (; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    float lanes[kLanes] = {};
    store_partial(lanes, exp(load_partial(x + i, count) - offset), count);
    sum[0] = sum[0] + load(lanes);
    if (y != nullptr) store_partial(y + i, load(lanes), count);
  }
  return reduce_add(sum[0] + sum[1]);
}

// A row without a finite entry gives zeros (-inf for the logarithm), not NaN: nothing was there to be seen.
inline void softmax_row(const float* x, float* y, int64_t n, int32_t log) {
  const float max = row_max(x, n);
  const float shift = max == -__builtin_inff() ? 0.0f : max;
  const float sum = exp_sum(x, shift, log != 0 ? nullptr : y, n);
  const bool empty = sum == 0.0f;
  const Vf offset = broadcast(shift), logarithm = broadcast(empty ? 0.0f : __builtin_logf(sum));
  const Vf inverse = broadcast(empty ? 1.0f : 1.0f / sum);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    const Vf value =
        log != 0 ? (load_partial(x + i, count) - offset) - logarithm : load_partial(y + i, count) * inverse;
    store_partial(y + i, value, count);
  }
}

constexpr SoftmaxKernels kSoftmaxKernels = {&softmax_row, &row_max, &exp_shifted};

}  // namespace qformer::cpu::QF_ISA
