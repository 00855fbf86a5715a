// f16 and bf16 as integer bit patterns, one element at a time: for instruction sets and tails without conversion
// instructions. Included inside a namespace of the includer's choice through QF_ISA (simd_*.h), so that no symbol is
// shared across ISAs.
#pragma once

#include <stdint.h>
#include <string.h>

namespace qformer::cpu::QF_ISA {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline float bf16_to_float(uint16_t h) { return bits_float(uint32_t{h} << 16); }

// Round to nearest even; NaN becomes a quiet NaN.
inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rounds up; x >= 0.
inline uint16_t float_to_bf16_up(float x) { return static_cast<uint16_t>((float_bits(x) + 0xffff) >> 16); }

// Exponent and mantissa are placed as an f32 2^-112 too small; one multiplication rescales, subnormals included.
inline float f16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00)
    return bits_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000u : 0));
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}

// Round to nearest even. Below the normal range the addition of 0.5 aligns the mantissa to f16's smallest step, 2^-24.
inline uint16_t float_to_f16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000)
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000));
  return static_cast<uint16_t>(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

}  // namespace qformer::cpu::QF_ISA
