// The linear family's kernel table: dot products (linear_dot.h, linear_packed.h), rounding of x, and the epilogue.
#pragma once

#include "kernels.h"
#include "linear_finish.h"
#include "linear_outer.h"
#include "linear_packed.h"

namespace qformer::cpu::QF_ISA {

// x rounded to bf16: as bf16 where the ISA multiplies bf16 pairs, else as the f32 of the same value.
inline void round_x_to_bf16(const float* x, int64_t n, void* out) {
#if defined(QF_ISA_BF16_DOT)
  auto* y = static_cast<uint16_t*>(out);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bf16(y + i, load(x + i));
  if (i < n) store_bf16_partial(y + i, load_partial(x + i, n - i), n - i);
#else
  auto* y = static_cast<float*>(out);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = smaller(kLanes, n - i);
    uint16_t rounded[kLanes] = {};
    store_bf16(rounded, load_partial(x + i, count));
    store_partial(y + i, load_bf16(rounded), count);
  }
#endif
}

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
struct DotEntries {
  using X = typename Dot::X;
  using W = typename Dot::W;

  static void rows(const void* x, int64_t ldx, int64_t m, const void* w, int64_t ldw, int64_t n, int64_t k, float* sums,
                   int64_t ld_sums) {
    dot_rows_of<Dot>(static_cast<const X*>(x), ldx, m, static_cast<const W*>(w), ldw, n, k, sums, ld_sums);
  }
  static void pack_x(const void* x, int64_t ldx, int64_t rows, int64_t k, int64_t tile, int64_t tiles, float* out) {
    pack_x_tile<Dot>(static_cast<const X*>(x), ldx, rows, k, tile, tiles, out);
  }
  static void panel(const float* packed_x, int64_t tiles, const void* w, int64_t ldw, int64_t columns, int64_t k,
                    float* packed_w, float* waiting, float* sums, int64_t ld_sums) {
    dot_panel<Dot>(packed_x, tiles, static_cast<const W*>(w), ldw, columns, k, packed_w, waiting, sums, ld_sums);
  }
  static void pack_x_lanes(const void* x, int64_t ldx, int64_t rows, int64_t k, float* out, int64_t lane_stride) {
    outer_pack_x<Dot>(static_cast<const X*>(x), ldx, rows, k, out, lane_stride);
  }
  static void pack_w_lanes(const void* w, int64_t ldw, int64_t columns, int64_t k, float* out, int64_t lane_stride) {
    outer_pack_w<Dot>(static_cast<const W*>(w), ldw, columns, k, out, lane_stride);
  }

  static constexpr DotKernels kTable = {
      sizeof(X), sizeof(W), Dot::kStep, rows, pack_x, panel, pack_x_lanes, pack_w_lanes, outer_products<DotTiles<Dot>>};
};

inline constexpr LinearKernels kLinearKernels = {
    kTileM,
    kTileN,
    kPanelBytes,
    kOuterRows,
    kOuterColumns,
    8,
    DotEntries<DotF32>::kTable,
    DotEntries<DotF16>::kTable,
    DotEntries<DotBf16>::kTable,
#if defined(QF_ISA_BF16_DOT)
    DotEntries<DotBf16Pairs>::kTable,
#else
    DotEntries<DotBf16>::kTable,
#endif
    round_x_to_bf16,
    finish_rows,
    lora_row_any,
};

}  // namespace qformer::cpu::QF_ISA
