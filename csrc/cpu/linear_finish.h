// The epilogue of the linear family.
#pragma once

#include "kernels.h"
#include "linear_dot.h"

namespace qformer::cpu::QF_ISA {

// `count` lanes of a row from column i on; count is constant but at the end of a row.
inline void finish_lanes(const Finish& job, int64_t row, int64_t i, int64_t count) {
  const auto lanes = [count](const float* from) { return count == kLanes ? load(from) : load_partial(from, count); };
  Vf value = lanes(job.sums + row * job.ld_sums + i);
  if (job.bias != nullptr) value = value + lanes(job.bias + i);
  value = activate(value, job.activation);
  if (job.up != nullptr) value = value * lanes(job.up + row * job.ld_up + i);
  if (job.residual != nullptr) value = value + lanes(job.residual + row * job.ldr + i);
  float* y = job.y + row * job.ldy + i;
  if (count == kLanes) {
    store(y, value);
  } else {
    store_partial(y, value, count);
  }
}

inline void finish_rows(const Finish& job) {
  for (int64_t row = 0; row < job.m; row++) {
    int64_t i = 0;
    for (; i + kLanes <= job.n; i += kLanes) finish_lanes(job, row, i, kLanes);
    if (i < job.n) finish_lanes(job, row, i, job.n - i);
  }
}

}  // namespace qformer::cpu::QF_ISA
