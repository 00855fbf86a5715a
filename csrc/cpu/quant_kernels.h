// The kernel table of quantised weights: products (quant_dot.h), and quantisation.
#pragma once

#include "half.h"
#include "quant_dot.h"

namespace qformer::cpu::QF_ISA {

template <int kBits, int kXBits>
inline constexpr DotKernels kQuantDot = {
    kBits,   kQuantUnit, kUnitFloats<kBits, kXBits>,  kQuantTileRows,
    0,       false,      pack_quant_x<kBits, kXBits>, quant_rows_of<kBits, kXBits>,
    nullptr,
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
    kQuantDot<8, 16>, kQuantDot<4, 16>, kQuantDot<8, 8>, kQuantDot<4, 8>, quantize_group,
};

}  // namespace qformer::cpu::QF_ISA
