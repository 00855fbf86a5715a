// Approximate functions of one instruction, and reductions over the 32 lanes of a warp.
//
// Reductions take the butterfly order 16, 8, 4, 2, 1: every lane ends with the same bits, the same on every device.
#pragma once

#include "prims/cuda.h"

#ifdef QF_EMULATED
#include "math_model.h"
#else

namespace qformer::cuda::prims {

inline constexpr uint32_t kFullWarp = 0xffffffffu;

// 2^x, within 2 units in the last place.
QF_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x, within 1 unit in the last place.
QF_DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// x itself, but what is computed from it stays where it is written: for addresses that cost one instruction to form
// and a register each to keep through a loop.
QF_DEVICE int32_t pinned(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
// tanh x, within 2^-11 relative (one instruction from sm_75).
QF_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

QF_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) x += __shfl_xor_sync(kFullWarp, x, lane_mask);
  return x;
}
QF_DEVICE int32_t warp_sum(int32_t x) {
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) x += __shfl_xor_sync(kFullWarp, x, lane_mask);
  return x;
}
QF_DEVICE float warp_max(float x) {
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, lane_mask));
  return x;
}
QF_DEVICE int32_t warp_max(int32_t x) {
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, lane_mask));
  return x;
}

}  // namespace qformer::cuda::prims

#endif

namespace qformer::cuda::prims {

// x * y rounded on its own: never fused with a sum that takes it. Kernels that must agree bit for bit use it.
QF_DEVICE float mul_rn(float x, float y) {
#if QF_DEVICE_ARCH > 0
  return __fmul_rn(x, y);
#else
  return x * y;
#endif
}

}  // namespace qformer::cuda::prims
