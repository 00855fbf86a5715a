// The linear family's kernel table: dot products (linear_dot.h, linear_panel.h), LoRA, and the epilogue.
#pragma once

#include "kernels.h"
#include "linear_finish.h"
#include "linear_panel.h"

namespace qformer::cpu::QF_ISA {

// y = w + scaling * sum over r of b[r] * a[r, :] for one row of n elements, rounded once to the type of w. r ascends.
template <class Load, class Store>
inline void lora_row(const float* a, const float* b, int64_t rank, int64_t n, float scaling, Load load_w,
                     Store store_y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = smaller(kLanes, n - i);
    Vf delta = zero();
    for (int64_t r = 0; r < rank; r++) delta = fma(broadcast(b[r]), load_partial(a + r * n + i, count), delta);
    store_y(i, fma(broadcast(scaling), delta, load_w(i, count)), count);
  }
}

inline void lora_row_any(const void* w, const float* a, const float* b, void* y, int64_t rank, int64_t n, float scaling,
                         int32_t dtype) {
  const auto* bits = static_cast<const uint16_t*>(w);
  auto* out = static_cast<uint16_t*>(y);
  if (dtype == QF_F32) {
    lora_row(
        a, b, rank, n, scaling, [&](int64_t i, int64_t c) { return load_partial(static_cast<const float*>(w) + i, c); },
        [&](int64_t i, Vf v, int64_t c) { store_partial(static_cast<float*>(y) + i, v, c); });
  } else if (dtype == QF_F16) {
    lora_row(
        a, b, rank, n, scaling, [&](int64_t i, int64_t c) { return load_f16_partial(bits + i, c); },
        [&](int64_t i, Vf v, int64_t c) { store_f16_partial(out + i, v, c); });
  } else {
    lora_row(
        a, b, rank, n, scaling, [&](int64_t i, int64_t c) { return load_bf16_partial(bits + i, c); },
        [&](int64_t i, Vf v, int64_t c) { store_bf16_partial(out + i, v, c); });
  }
}

template <class Dot>
inline constexpr DotKernels kDotKernels = {
    8 * sizeof(typename Dot::W), Dot::kStep,      kLanes,           kDotRows,
    kBlockGroups* Dot::kGroup,   Dot::kTakesRows, pack_x_tile<Dot>, dot_rows_of<Dot>,
    multiply_panel<Dot>,
};

inline constexpr LinearKernels kLinearKernels = {
    kPanelRows,          kPanelColumns,       kPanelFloats,         kFarColumns,
    kDotKernels<DotF32>, kDotKernels<DotF16>, kDotKernels<DotBf16>, kDotKernels<DotBf16Products>,
    finish_rows,         lora_row_any,
};

}  // namespace qformer::cpu::QF_ISA
