// Half, BFloat16 and their conversions, and Vec: N elements moved as one access of 4, 8 or 16 bytes.
//
// Own types of two bytes, so that kernels need no CUDA header on the host. Conversions to 16 bits round to nearest
// even.
#pragma once

#include <cstring>

#include "prims/cuda.h"

namespace qformer::cuda::prims {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
inline constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<Half> = true;

template <class T, int N>
struct alignas(N * sizeof(T)) Vec {
  static_assert(N * sizeof(T) == 2 || N * sizeof(T) == 4 || N * sizeof(T) == 8 || N * sizeof(T) == 16,
                "a vector access moves 2, 4, 8 or 16 bytes");
  T values[N];
  QF_HOST_DEVICE T& operator[](int i) { return values[i]; }
  QF_HOST_DEVICE const T& operator[](int i) const { return values[i]; }
};

template <class To, class From>
QF_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

#ifdef QF_EMULATED

QF_DEVICE float to_float(Half x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return bit_cast<float>(sign | 0x70000000u | magnitude);  // infinity and NaN
  return bit_cast<float>(bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f) | sign);
}
QF_DEVICE float to_float(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
T from_float(float x);

template <>
QF_DEVICE Half from_float<Half>(float x) {
  uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return {0x7fff};
  if (u >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  // Subnormal halves: 0.5 has the unit of the last place that a subnormal half has, so the sum rounds as wanted.
  if (u < 0x38800000u) {
    const float shifted = bit_cast<float>(u) + 0.5f;
    return {static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  u += 0xfffu + (u >> 13 & 1u);
  return {static_cast<uint16_t>(sign | (u - 0x38000000u) >> 13)};
}
template <>
QF_DEVICE BFloat16 from_float<BFloat16>(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

#else

QF_DEVICE float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
QF_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
__device__ T from_float(float x);

template <>
QF_DEVICE Half from_float<Half>(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
QF_DEVICE BFloat16 from_float<BFloat16>(float x) {
#if QF_DEVICE_ARCH >= 800
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
#endif
}

#endif

QF_DEVICE float to_float(float x) { return x; }
template <>
QF_DEVICE float from_float<float>(float x) {
  return x;
}

// Two values of a 16-bit type in one register, `lo` in the lower half: the order of mma fragments and of memory.
template <class T>
QF_DEVICE uint32_t pack2(float lo, float hi) {
  static_assert(sizeof(T) == 2, "pack2 packs 16-bit types");
#if QF_DEVICE_ARCH >= 800
  uint32_t packed;
  if constexpr (kIsHalf<T>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
  return packed;
#else
  return static_cast<uint32_t>(from_float<T>(hi).bits) << 16 | from_float<T>(lo).bits;
#endif
}

template <class T>
QF_DEVICE void unpack2(uint32_t packed, float& lo, float& hi) {
  static_assert(sizeof(T) == 2, "unpack2 unpacks 16-bit types");
  lo = to_float(T{static_cast<uint16_t>(packed)});
  hi = to_float(T{static_cast<uint16_t>(packed >> 16)});
}

}  // namespace qformer::cuda::prims
