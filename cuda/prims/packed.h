// Arithmetic on registers that hold several small values: two 16-bit floats, or four bytes.
//
// What weight-only quantisation needs to turn integers into floats without a conversion instruction per value.
#pragma once

#include "prims/dtype.h"

namespace qformer::cuda::prims {

// Byte i of the result is byte (selector >> 4i) & 7 of the eight bytes of low (0-3) and high (4-7). PTX ISA, "prmt".
QF_DEVICE uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef QF_EMULATED
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const int source = static_cast<int>(selector >> (4 * i) & 7u);
    result |= static_cast<uint32_t>(bytes >> (8 * source) & 0xffu) << (8 * i);
  }
  return result;
#else
  return __byte_perm(low, high, selector);
#endif
}

// a · b + c on both halves, rounded once. Half on every architecture, BFloat16 from sm_80.
template <class T>
QF_DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef QF_EMULATED
  float a_low, a_high, b_low, b_high, c_low, c_high;
  unpack2<T>(a, a_low, a_high);
  unpack2<T>(b, b_low, b_high);
  unpack2<T>(c, c_low, c_high);
  return pack2<T>(fmaf(a_low, b_low, c_low), fmaf(a_high, b_high, c_high));
#else
  uint32_t d = 0;
  if constexpr (kIsHalf<T>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  } else {
#if QF_DEVICE_ARCH >= 800
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
#endif
  }
  return d;
#endif
}

}  // namespace qformer::cuda::prims
