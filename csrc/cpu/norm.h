// The norm prologue that linear ops share: rms_norm of x into working memory, so that a fused op has the bits of the
// two ops one after the other.
#pragma once

#include <cstdint>

namespace qformer::cpu {

struct FloatRows {
  const float* data;
  int64_t ld;
};

// x: [m, k], rows ldx apart; as it is where norm_weight is null. The result lives in the caller's Scratch::kNormedX.
FloatRows normed_rows(const void* x, const float* norm_weight, int64_t m, int64_t k, int64_t ldx, float eps);

}  // namespace qformer::cpu
