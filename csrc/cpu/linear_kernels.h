// Placeholder
#pragma once
#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

inline void activate_row(float* x, int64_t n, int32_t kind) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, activate(load(x + i), kind));
  if (i < n) store_partial(x + i, activate(load_partial(x + i, n - i), kind), n - i);
}

constexpr LinearKernels kLinearKernels = {&activate_row};

}  // namespace qformer::cpu::QF_ISA
