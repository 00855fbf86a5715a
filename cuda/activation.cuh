// The activations of QfActivation on f32 values in registers, for fused epilogues. The switch is outside the loop: it
// is uniform over the grid. Their last product is rounded on its own, so that no kernel fuses it with a residual's sum.
#pragma once

#include "backend/backend.h"
#include "prims/math.h"

namespace qformer::cuda {

QF_DEVICE float gelu_erf(float x) { return mul_rn(0.5f * x, 1.0f + erff(x * 0.70710678f)); }

QF_DEVICE float gelu_tanh(float x) {
  const float inner = 0.79788456f * fmaf(0.044715f * x * x, x, x);
  return mul_rn(0.5f * x, 1.0f + tanhf(inner));
}

QF_DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

template <int kCount>
QF_DEVICE void activate(float (&x)[kCount], int32_t activation) {
  switch (activation) {
    case QF_ACT_GELU_ERF:
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = gelu_erf(x[i]);
      break;
    case QF_ACT_GELU_TANH:
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = gelu_tanh(x[i]);
      break;
    case QF_ACT_RELU:
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = fmaxf(x[i], 0.0f);
      break;
    case QF_ACT_SILU:
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = silu(x[i]);
      break;
    default:
      break;
  }
}

}  // namespace qformer::cuda
