// Integers for products of quantised weights: Vi, a vector as wide as Vf of kLanes 32-bit or 2 * kLanes 16-bit ones.
//
//   load_bits(p), broadcast_bits(p): the 32 bits at p in every lane, zero_bits(); a + b of 32-bit lanes
//   as_float(v), as_bits(v): the same bits; to_float(v): the same numbers
//   mac_i16(sum, a, b): lane i of sum plus the products of the 16-bit pairs of lane i
//   store_i16(p, v): kLanes whole numbers of the Vf v as 16 bits, saturated
//   word_part<bits>(v, i): from each 16-bit word of packed weights the i-th weight, as stored
// where QF_BYTE_PRODUCTS or QF_BYTE_PAIRS is defined:
//   byte_part<bits>(v, i): from each byte of packed weights the i-th weight, as stored
//   mac_bytes(sum, a, b): lane i of sum, of 32 bits with QF_BYTE_PRODUCTS, else of 16, plus the products of the bytes
//   of
//     lane i, those of a unsigned, of b signed
// where QF_BYTE_PAIRS is:
//   broadcast_i16(n): n in every 16-bit lane
// and where QF_BYTE_PRODUCTS is:
//   times_256(v): of 32-bit lanes
//   split_levels(p, high, low): of 64 16-bit numbers, the signed bytes that make 256 * high + low
#pragma once

#include "simd.h"

namespace qformer::cpu::QF_ISA {

#if defined(__AVX512VNNI__)
#define QF_BYTE_PRODUCTS
#elif defined(QF_ISA_AVX512) || defined(QF_ISA_AVX2)
#define QF_BYTE_PAIRS
// In assembly: GCC 12 forms the products of many sums before it adds them, and spills.
template <class V>
inline __attribute__((always_inline)) V multiply_and_add_pairs(V sum, V a, V b) {
  V product;
  asm("vpmaddwd %3, %2, %1\n\t"
      "vpaddd %1, %0, %0"
      : "+v"(sum), "=&v"(product)
      : "v"(a), "vm"(b));
  return sum;
}
template <class V>
inline __attribute__((always_inline)) V multiply_and_add_byte_pairs(V sum, V a, V b) {
  V product;
  asm("vpmaddubsw %3, %2, %1\n\t"
      "vpaddw %1, %0, %0"
      : "+v"(sum), "=&v"(product)
      : "v"(a), "vm"(b));
  return sum;
}
#endif

#if defined(QF_ISA_AVX512)

struct Vi {
  __m512i v;
};
inline Vi load_bits(const void* p) { return {_mm512_loadu_si512(p)}; }
inline Vi zero_bits() { return {_mm512_setzero_si512()}; }
inline Vi broadcast_bits(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return {_mm512_set1_epi32(bits)};
}
inline Vi operator+(Vi a, Vi b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Vf as_float(Vi a) { return {_mm512_castsi512_ps(a.v)}; }
inline Vi as_bits(Vf a) { return {_mm512_castps_si512(a.v)}; }
inline Vf to_float(Vi a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline __attribute__((always_inline)) Vi mac_i16(Vi sum, Vi a, Vi b) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
#else
  return {multiply_and_add_pairs(sum.v, a.v, b.v)};
#endif
}
inline void store_i16(int16_t* p, Vf a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
template <int kBits>
inline Vi word_part(Vi a, int i) {
  const __m512i shifted = i == 0 ? a.v : _mm512_srli_epi16(a.v, static_cast<unsigned>(kBits * i));
  return {i == 16 / kBits - 1 ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi16((1 << kBits) - 1))};
}
template <int kBits>
inline Vi byte_part(Vi a, int i) {
  if (kBits == 8) return a;
  return {_mm512_and_si512(i == 0 ? a.v : _mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}

#if defined(QF_BYTE_PAIRS)
inline Vi broadcast_i16(int16_t n) { return {_mm512_set1_epi16(n)}; }
inline __attribute__((always_inline)) Vi mac_bytes(Vi sum, Vi a, Vi b) {
  return {multiply_and_add_byte_pairs(sum.v, a.v, b.v)};
}
#else
// Not by its intrinsic: for loops of many sums GCC 12 keeps two registers of each, copies between them and spills.
inline __attribute__((always_inline)) Vi mac_bytes(Vi sum, Vi a, Vi b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "vm"(b.v));
  return sum;
}
inline Vi times_256(Vi a) { return {_mm512_slli_epi32(a.v, 8)}; }
inline void split_levels(const int16_t* p, int8_t* high, int8_t* low) {
#pragma GCC unroll 2
  for (int i = 0; i < 64; i += 32) {
    const __m512i v = _mm512_loadu_si512(p + i);
    const __m512i above = _mm512_srai_epi16(_mm512_add_epi16(v, _mm512_set1_epi16(128)), 8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + i), _mm512_cvtepi16_epi8(above));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + i), _mm512_cvtepi16_epi8(v));
  }
}
#endif

#elif defined(QF_ISA_AVX2)

struct Vi {
  __m256i v;
};
inline Vi load_bits(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
inline Vi zero_bits() { return {_mm256_setzero_si256()}; }
inline Vi broadcast_bits(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return {_mm256_set1_epi32(bits)};
}
inline Vi operator+(Vi a, Vi b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Vf as_float(Vi a) { return {_mm256_castsi256_ps(a.v)}; }
inline Vi as_bits(Vf a) { return {_mm256_castps_si256(a.v)}; }
inline Vf to_float(Vi a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline __attribute__((always_inline)) Vi mac_i16(Vi sum, Vi a, Vi b) {
  return {multiply_and_add_pairs(sum.v, a.v, b.v)};
}
inline void store_i16(int16_t* p, Vf a) {
  const __m256i whole = _mm256_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
template <int kBits>
inline Vi word_part(Vi a, int i) {
  const __m256i shifted = i == 0 ? a.v : _mm256_srli_epi16(a.v, kBits * i);
  return {i == 16 / kBits - 1 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16((1 << kBits) - 1))};
}
template <int kBits>
inline Vi byte_part(Vi a, int i) {
  if (kBits == 8) return a;
  return {_mm256_and_si256(i == 0 ? a.v : _mm256_srli_epi16(a.v, 4), _mm256_set1_epi8(15))};
}
inline Vi broadcast_i16(int16_t n) { return {_mm256_set1_epi16(n)}; }
inline __attribute__((always_inline)) Vi mac_bytes(Vi sum, Vi a, Vi b) {
  return {multiply_and_add_byte_pairs(sum.v, a.v, b.v)};
}

#elif defined(QF_ISA_NEON)

struct Vi {
  int32x4_t v;
};
inline Vi load_bits(const void* p) { return {vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)))}; }
inline Vi zero_bits() { return {vdupq_n_s32(0)}; }
inline Vi broadcast_bits(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return {vdupq_n_s32(bits)};
}
inline Vi operator+(Vi a, Vi b) { return {vaddq_s32(a.v, b.v)}; }
inline Vf as_float(Vi a) { return {vreinterpretq_f32_s32(a.v)}; }
inline Vi as_bits(Vf a) { return {vreinterpretq_s32_f32(a.v)}; }
inline Vf to_float(Vi a) { return {vcvtq_f32_s32(a.v)}; }
inline Vi mac_i16(Vi sum, Vi a, Vi b) {
  const int16x8_t x = vreinterpretq_s16_s32(a.v), y = vreinterpretq_s16_s32(b.v);
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
  return {vaddq_s32(sum.v, vpaddq_s32(low, vmull_high_s16(x, y)))};
}
inline void store_i16(int16_t* p, Vf a) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(a.v))); }
template <int kBits>
inline Vi word_part(Vi a, int i) {
  const uint16x8_t shifted = vshlq_u16(vreinterpretq_u16_s32(a.v), vdupq_n_s16(static_cast<int16_t>(-kBits * i)));
  return {vreinterpretq_s32_u16(vandq_u16(shifted, vdupq_n_u16((1 << kBits) - 1)))};
}

#else

typedef int16_t WordLanes __attribute__((vector_size(16)));

struct Vi {
  IntLanes v;
};
inline Vi load_bits(const void* p) {
  Vi a;
  memcpy(&a.v, p, sizeof(a.v));
  return a;
}
inline Vi zero_bits() { return {IntLanes{0, 0, 0, 0}}; }
inline Vi broadcast_bits(const void* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return {IntLanes{bits, bits, bits, bits}};
}
inline Vi operator+(Vi a, Vi b) { return {a.v + b.v}; }
inline Vf as_float(Vi a) { return {(Lanes)a.v}; }
inline Vi as_bits(Vf a) { return {(IntLanes)a.v}; }
inline Vf to_float(Vi a) { return {__builtin_convertvector(a.v, Lanes)}; }
inline Vi mac_i16(Vi sum, Vi a, Vi b) {
  const WordLanes x = (WordLanes)a.v, y = (WordLanes)b.v;
  for (int i = 0; i < kLanes; i++) sum.v[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return sum;
}
inline void store_i16(int16_t* p, Vf a) {
  for (int i = 0; i < kLanes; i++) {
    const int32_t whole = static_cast<int32_t>(nearbyintf(a.v[i]));
    p[i] = static_cast<int16_t>(whole > 32767 ? 32767 : whole < -32768 ? -32768 : whole);
  }
}
template <int kBits>
inline Vi word_part(Vi a, int i) {
  const WordLanes words = (WordLanes)a.v;
  return {(IntLanes)((words >> kBits * i) & (int16_t)((1 << kBits) - 1))};
}

#endif

}  // namespace qformer::cpu::QF_ISA
