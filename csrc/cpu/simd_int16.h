// Integers for products of quantised weights: Vi, a vector as wide as Vf of kLanes 32-bit or 2 * kLanes 16-bit ones.
//
//   load_bits(p), broadcast_bits(p): the 32 bits at p in every lane, zero_bits(); a + b of 32-bit lanes
//   as_float(v): the same bits; to_float(v): the same numbers
//   mac_i16(sum, a, b): lane i of sum plus the products of the 16-bit pairs of lane i
//   spread(v, index): lane i is lane index[i] of the Vf v
//   store_i16(p, v): kLanes whole numbers of the Vf v as 16 bits, saturated
//   plane<bits>(v, i): from each 16-bit word of packed weights its i-th weight; of 4 bits as stored, 0 to 15
//   less_8(v): 16-bit numbers minus 8
//   fold_16(a, b), fold_8(a, b): groups of 16 or 8 lanes added to groups of half as many, those of a first; a + b where
//   no vector holds a whole group
//   totals_of_4(a, b, c, d): lane i is the sum of the i-th group of 4 lanes, those of a first
#pragma once

#include "simd.h"

namespace qformer::cpu::QF_ISA {

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
inline Vf to_float(Vi a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Vi mac_i16(Vi sum, Vi a, Vi b) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
#else
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v))};
#endif
}
inline Vf spread(Vf a, Vi index) { return {_mm512_permutexvar_ps(index.v, a.v)}; }
inline void store_i16(int16_t* p, Vf a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
template <int kBits>
inline Vi plane(Vi a, int i) {
  if (kBits == 8) return {_mm512_srai_epi16(i == 0 ? _mm512_slli_epi16(a.v, 8) : a.v, 8)};
  const __m512i shifted = i == 0 ? a.v : _mm512_srli_epi16(a.v, static_cast<unsigned>(4 * i));
  return {i == 3 ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi16(15))};
}
inline Vi less_8(Vi a) { return {_mm512_sub_epi16(a.v, _mm512_set1_epi16(8))}; }
inline Vi fold_16(Vi a, Vi b) {
  return {_mm512_add_epi32(_mm512_shuffle_i32x4(a.v, b.v, 0x44), _mm512_shuffle_i32x4(a.v, b.v, 0xee))};
}
inline Vi fold_8(Vi a, Vi b) {
  return {_mm512_add_epi32(_mm512_shuffle_i32x4(a.v, b.v, 0x88), _mm512_shuffle_i32x4(a.v, b.v, 0xdd))};
}
inline __m512i fold_4(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
inline Vi totals_of_4(Vi a, Vi b, Vi c, Vi d) {
  const __m512 ab = _mm512_castsi512_ps(fold_4(a.v, b.v)), cd = _mm512_castsi512_ps(fold_4(c.v, d.v));
  const __m512i sums = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0x88)),
                                        _mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0xdd)));
  return {_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums)};
}

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
inline Vf to_float(Vi a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline Vi mac_i16(Vi sum, Vi a, Vi b) { return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))}; }
inline Vf spread(Vf a, Vi index) { return {_mm256_permutevar8x32_ps(a.v, index.v)}; }
inline void store_i16(int16_t* p, Vf a) {
  const __m256i whole = _mm256_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
template <int kBits>
inline Vi plane(Vi a, int i) {
  if (kBits == 8) return {_mm256_srai_epi16(i == 0 ? _mm256_slli_epi16(a.v, 8) : a.v, 8)};
  const __m256i shifted = i == 0 ? a.v : _mm256_srli_epi16(a.v, 4 * i);
  return {i == 3 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16(15))};
}
inline Vi less_8(Vi a) { return {_mm256_sub_epi16(a.v, _mm256_set1_epi16(8))}; }
inline Vi fold_16(Vi a, Vi b) { return a + b; }
inline Vi fold_8(Vi a, Vi b) {
  return {_mm256_add_epi32(_mm256_permute2x128_si256(a.v, b.v, 0x20), _mm256_permute2x128_si256(a.v, b.v, 0x31))};
}
inline Vi totals_of_4(Vi a, Vi b, Vi c, Vi d) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a.v, b.v), _mm256_hadd_epi32(c.v, d.v));
  return {_mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
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
inline Vf to_float(Vi a) { return {vcvtq_f32_s32(a.v)}; }
inline Vi mac_i16(Vi sum, Vi a, Vi b) {
  const int16x8_t x = vreinterpretq_s16_s32(a.v), y = vreinterpretq_s16_s32(b.v);
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
  return {vaddq_s32(sum.v, vpaddq_s32(low, vmull_high_s16(x, y)))};
}
inline Vf spread(Vf a, Vi index) {
  float lanes[4], out[4];
  int32_t at[4];
  vst1q_f32(lanes, a.v);
  vst1q_s32(at, index.v);
  for (int i = 0; i < 4; i++) out[i] = lanes[at[i]];
  return {vld1q_f32(out)};
}
inline void store_i16(int16_t* p, Vf a) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(a.v))); }
template <int kBits>
inline Vi plane(Vi a, int i) {
  const int16x8_t words = vreinterpretq_s16_s32(a.v);
  if (kBits == 8) return {vreinterpretq_s32_s16(vshrq_n_s16(i == 0 ? vshlq_n_s16(words, 8) : words, 8))};
  const uint16x8_t shifted = vshlq_u16(vreinterpretq_u16_s16(words), vdupq_n_s16(static_cast<int16_t>(-4 * i)));
  return {vreinterpretq_s32_u16(vandq_u16(shifted, vdupq_n_u16(15)))};
}
inline Vi less_8(Vi a) { return {vreinterpretq_s32_s16(vsubq_s16(vreinterpretq_s16_s32(a.v), vdupq_n_s16(8)))}; }
inline Vi fold_16(Vi a, Vi b) { return a + b; }
inline Vi fold_8(Vi a, Vi b) { return a + b; }
inline Vi totals_of_4(Vi a, Vi b, Vi c, Vi d) { return {vpaddq_s32(vpaddq_s32(a.v, b.v), vpaddq_s32(c.v, d.v))}; }

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
inline Vf to_float(Vi a) { return {__builtin_convertvector(a.v, Lanes)}; }
inline Vi mac_i16(Vi sum, Vi a, Vi b) {
  const WordLanes x = (WordLanes)a.v, y = (WordLanes)b.v;
  for (int i = 0; i < kLanes; i++) sum.v[i] += x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return sum;
}
inline Vf spread(Vf a, Vi index) {
  Vf out;
  for (int i = 0; i < kLanes; i++) out.v[i] = a.v[index.v[i]];
  return out;
}
inline void store_i16(int16_t* p, Vf a) {
  for (int i = 0; i < kLanes; i++) {
    const int32_t whole = static_cast<int32_t>(nearbyintf(a.v[i]));
    p[i] = static_cast<int16_t>(whole > 32767 ? 32767 : whole < -32768 ? -32768 : whole);
  }
}
template <int kBits>
inline Vi plane(Vi a, int i) {
  const WordLanes words = (WordLanes)a.v;
  if (kBits == 8) return {(IntLanes)((i == 0 ? words << 8 : words) >> 8)};
  return {(IntLanes)((words >> 4 * i) & 15)};
}
inline Vi less_8(Vi a) { return {(IntLanes)((WordLanes)a.v - 8)}; }
inline Vi fold_16(Vi a, Vi b) { return a + b; }
inline Vi fold_8(Vi a, Vi b) { return a + b; }
inline Vi totals_of_4(Vi a, Vi b, Vi c, Vi d) {
  const Vi groups[4] = {a, b, c, d};
  Vi out;
  for (int i = 0; i < kLanes; i++) out.v[i] = groups[i].v[0] + groups[i].v[1] + groups[i].v[2] + groups[i].v[3];
  return out;
}

#endif

}  // namespace qformer::cpu::QF_ISA
