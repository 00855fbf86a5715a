// The kernel table of quantised weights: products (quant_dot.h, quant_outer.h), and quantisation.
#pragma once

#include "half.h"
#include "quant_outer.h"

namespace qformer::cpu::QF_ISA {

template <int kBits>
struct QuantEntries {
  static void rows(const void* x, int64_t m, int64_t blocks, const QuantRows& w, int64_t n, float* sums,
                   int64_t ld_sums) {
    const auto* from = static_cast<const QuantX*>(x);
    if (m == 1) return quant_rows_all_n<kBits, 1>(from, blocks, w, n, sums, ld_sums);
    if (m == 2) return quant_rows_all_n<kBits, 2>(from, blocks, w, n, sums, ld_sums);
    if constexpr (kQuantRows == 4) {
      if (m == 3) return quant_rows_all_n<kBits, 3>(from, blocks, w, n, sums, ld_sums);
      quant_rows_all_n<kBits, 4>(from, blocks, w, n, sums, ld_sums);
    }
  }

  static constexpr QuantDotKernels kTable = {pack_quant_x<kBits>, rows};
};

// The largest magnitude; NaN counts as none.
inline float largest_of(const float* w, int64_t count) {
  Vf largest = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vf magnitude = vabs(load_partial(w + i, smaller(kLanes, count - i)));
    largest = select(less(largest, magnitude), magnitude, largest);
  }
  return reduce_max(largest);
}

inline void quantize_group(const float* w, int64_t count, int32_t bits, int8_t* levels, uint16_t* scale) {
  const float limit = bits == 8 ? 127.0f : 7.0f;
  *scale = float_to_bf16_up(largest_of(w, count) / limit);
  const float step = bf16_to_float(*scale);
  const bool is_zero = !(step > 0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = smaller(kLanes, count - i);
    Vf level = zero();
    if (!is_zero) {
      level = round_even(load_partial(w + i, n) / broadcast(step));
      level = select(is_nan(level), zero(), vmin(vmax(level, broadcast(-limit)), broadcast(limit)));
    }
    int8_t whole[kLanes];
    store_i8(whole, level);
    __builtin_memcpy(levels + i, whole, static_cast<size_t>(n));
  }
}

inline constexpr QuantKernels kQuantKernels = {
    kBlockColumns,           sizeof(QuantX),      kQuantRows,     QuantEntries<8>::kTable,
    QuantEntries<4>::kTable, &kQuantOuterKernels, quantize_group,
};

}  // namespace qformer::cpu::QF_ISA
