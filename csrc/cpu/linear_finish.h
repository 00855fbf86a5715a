// The epilogue of the linear family.
#pragma once

#include "kernels.h"
#include "linear_dot.h"

namespace qformer::cpu::QF_ISA {

inline void finish_rows(const Finish& job) {
  for (int64_t row = 0; row < job.m; row++) {
    const float* sums = job.sums + row * job.ld_sums;
    const float* up = job.up != nullptr ? job.up + row * job.ld_up : nullptr;
    const float* residual = job.residual != nullptr ? job.residual + row * job.ldr : nullptr;
    float* y = job.y + row * job.ldy;
    for (int64_t i = 0; i < job.n; i += kLanes) {
      const int64_t count = smaller(kLanes, job.n - i);
      Vf value = load_partial(sums + i, count);
      if (job.bias != nullptr) value = value + load_partial(job.bias + i, count);
      value = activate(value, job.activation);
      if (up != nullptr) value = value * load_partial(up + i, count);
      if (residual != nullptr) value = value + load_partial(residual + i, count);
      store_partial(y + i, value, count);
    }
  }
}

}  // namespace qformer::cpu::QF_ISA
