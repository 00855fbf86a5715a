// simd.h for AVX2 with FMA and F16C: 8 lanes; partial access to 16-bit types goes through a small buffer.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace qformer::cpu::QF_ISA {

struct Vf {
  __m256 v;
};
struct Vm {
  __m256 m;
};
constexpr int kLanes = 8;
constexpr int kRegisters = 16;

inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vf zero() { return {_mm256_setzero_ps()}; }
inline Vf broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vf load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vf load_partial(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
// p[0..3] in each group of four lanes.
inline Vf repeat_4(const float* p) { return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))}; }
inline void store(float* p, Vf a) { _mm256_storeu_ps(p, a.v); }
inline void store_partial(float* p, Vf a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }

inline Vf operator+(Vf a, Vf b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vf operator-(Vf a, Vf b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vf operator*(Vf a, Vf b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vf operator/(Vf a, Vf b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vf fma(Vf a, Vf b, Vf c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vf fnma(Vf a, Vf b, Vf c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vf vmax(Vf a, Vf b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vf vmin(Vf a, Vf b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vf vabs(Vf a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vf sqrt(Vf a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vf round_even(Vf a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vf pow2(Vf a) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}

inline Vm less(Vf a, Vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Vm is_nan(Vf a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline Vf select(Vm m, Vf a, Vf b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }

inline Vf from_f16(__m128i bits) { return {_mm256_cvtph_ps(bits)}; }
inline Vf from_bf16(__m128i bits) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))}; }
inline __m128i to_f16(Vf a) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// NaN becomes a quiet NaN.
inline __m128i to_bf16(Vf a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan(a).m)), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline __m128i load_u16(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m128i load_u16(const uint16_t* p, int64_t n) {
  if (n == kLanes) return load_u16(p);
  alignas(16) uint16_t buffer[8] = {};
  for (int64_t i = 0; i < n; i++) buffer[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}
inline void store_u16(uint16_t* p, __m128i bits, int64_t n) {
  alignas(16) uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), bits);
  for (int64_t i = 0; i < n; i++) p[i] = buffer[i];
}

inline Vf load_f16(const uint16_t* p) { return from_f16(load_u16(p)); }
inline Vf load_bf16(const uint16_t* p) { return from_bf16(load_u16(p)); }
inline Vf load_f16_partial(const uint16_t* p, int64_t n) { return from_f16(load_u16(p, n)); }
inline Vf load_bf16_partial(const uint16_t* p, int64_t n) { return from_bf16(load_u16(p, n)); }
inline void store_f16(uint16_t* p, Vf a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(a)); }
inline void store_bf16(uint16_t* p, Vf a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(a)); }
inline void store_f16_partial(uint16_t* p, Vf a, int64_t n) { store_u16(p, to_f16(a), n); }
inline void store_bf16_partial(uint16_t* p, Vf a, int64_t n) { store_u16(p, to_bf16(a), n); }

// Quantised weights, see simd.h.
inline void store_i8(int8_t* p, Vf a) {
  const __m256i whole = _mm256_cvtps_epi32(a.v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

inline float reduce_add(Vf a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline __m256 add_halves_of_4(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
inline __m256 add_halves_of_2(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
// Group g of the result: the sums of group g of a, b, c and d, each (0 + 2) + (1 + 3).
inline Vf add_groups(Vf a, Vf b, Vf c, Vf d) {
  return {add_halves_of_2(add_halves_of_4(a.v, b.v), add_halves_of_4(c.v, d.v))};
}
inline float reduce_max(Vf a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace qformer::cpu::QF_ISA
