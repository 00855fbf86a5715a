// simd.h for AVX-512 (F, BW, DQ, VL): 16 lanes, masks for partial access.
#pragma once

// GCC 12 warns about its own _mm512_undefined_*, at wherever they are inlined to.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>
#include <stdint.h>

namespace qformer::cpu::QF_ISA {

struct Vf {
  __m512 v;
};
struct Vm {
  __mmask16 m;
};
constexpr int kLanes = 16;
constexpr int kRegisters = 32;

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vf zero() { return {_mm512_setzero_ps()}; }
inline Vf broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vf load_partial(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
// p[0..3] in each group of four lanes.
inline Vf repeat_4(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
inline void store(float* p, Vf a) { _mm512_storeu_ps(p, a.v); }
inline void store_partial(float* p, Vf a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

inline Vf operator+(Vf a, Vf b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vf operator-(Vf a, Vf b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vf operator*(Vf a, Vf b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vf operator/(Vf a, Vf b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vf fma(Vf a, Vf b, Vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vf fnma(Vf a, Vf b, Vf c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vf vmax(Vf a, Vf b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vf vmin(Vf a, Vf b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vf vabs(Vf a) { return {_mm512_abs_ps(a.v)}; }
inline Vf sqrt(Vf a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vf round_even(Vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vf pow2(Vf a) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), a.v)}; }

inline Vm less(Vf a, Vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Vm is_nan(Vf a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline Vf select(Vm m, Vf a, Vf b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

inline Vf from_f16(__m256i bits) { return {_mm512_cvtph_ps(bits)}; }
inline Vf from_bf16(__m256i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}; }
inline __m256i to_f16(Vf a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// By integer arithmetic, since vcvtneps2bf16 flushes subnormals. NaN becomes a quiet NaN.
inline __m256i to_bf16(Vf a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan(a).m, rounded, quiet), 16));
}

inline __m256i load_u16(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i load_u16(const uint16_t* p, int64_t n) { return _mm256_maskz_loadu_epi16(first_lanes(n), p); }

inline Vf load_f16(const uint16_t* p) { return from_f16(load_u16(p)); }
inline Vf load_bf16(const uint16_t* p) { return from_bf16(load_u16(p)); }
inline Vf load_f16_partial(const uint16_t* p, int64_t n) { return from_f16(load_u16(p, n)); }
inline Vf load_bf16_partial(const uint16_t* p, int64_t n) { return from_bf16(load_u16(p, n)); }
inline void store_f16(uint16_t* p, Vf a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(a)); }
inline void store_bf16(uint16_t* p, Vf a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a)); }
inline void store_f16_partial(uint16_t* p, Vf a, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n), to_f16(a)); }
inline void store_bf16_partial(uint16_t* p, Vf a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), to_bf16(a));
}

// Quantised weights, see simd.h.
inline void store_i8(int8_t* p, Vf a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

inline __m128 fold_to_4(__m512 v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float reduce_add(Vf a) {
  const __m128 four = fold_to_4(a.v);
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline __m512 add_halves_of_4(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
inline __m512 add_halves_of_2(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
// Group g of the result: the sums of group g of a, b, c and d, each (0 + 2) + (1 + 3).
inline Vf add_groups(Vf a, Vf b, Vf c, Vf d) {
  return {add_halves_of_2(add_halves_of_4(a.v, b.v), add_halves_of_4(c.v, d.v))};
}
inline float reduce_max(Vf a) { return _mm512_reduce_max_ps(a.v); }

}  // namespace qformer::cpu::QF_ISA
