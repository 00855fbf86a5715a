// transpose(tile): a square of kLanes x kLanes floats, row i in tile[i], turned in registers. load_transposed(rows, ld,
// tile): the same of rows in memory.
#pragma once

#include "simd.h"

namespace qformer::cpu::QF_ISA {

#if defined(QF_ISA_AVX512)

// Pairs, then quadruples within 128-bit lanes, then the lanes themselves: 64 shuffles for 256 elements.
inline void transpose(Vf (&tile)[kLanes]) {
  __m512 pair[16];
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_ps(tile[i].v, tile[i + 1].v);
    pair[i + 1] = _mm512_unpackhi_ps(tile[i].v, tile[i + 1].v);
  }
  __m512 quad[16];  // quad[4 * g + c]: column c of each 128-bit lane, rows 4g..4g+3
  for (int g = 0; g < 4; ++g) {
    const __m512d a = _mm512_castps_pd(pair[4 * g]), b = _mm512_castps_pd(pair[4 * g + 2]);
    const __m512d c = _mm512_castps_pd(pair[4 * g + 1]), d = _mm512_castps_pd(pair[4 * g + 3]);
    quad[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    quad[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    quad[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    quad[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(quad[c], quad[4 + c], 0x88),
                 b = _mm512_shuffle_f32x4(quad[c], quad[4 + c], 0xdd);
    const __m512 d = _mm512_shuffle_f32x4(quad[8 + c], quad[12 + c], 0x88);
    const __m512 e = _mm512_shuffle_f32x4(quad[8 + c], quad[12 + c], 0xdd);
    tile[c].v = _mm512_shuffle_f32x4(a, d, 0x88);
    tile[8 + c].v = _mm512_shuffle_f32x4(a, d, 0xdd);
    tile[4 + c].v = _mm512_shuffle_f32x4(b, e, 0x88);
    tile[12 + c].v = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
}

// Loads of 128 bits put rows i, i + 4, i + 8, i + 12 side by side, which leaves half of the shuffles.
inline void load_transposed(const float* rows, int64_t ld, Vf (&tile)[kLanes]) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; q++) {
    __m512 v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const float* p = rows + i * ld + 4 * q;
      v[i] = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
      v[i] = _mm512_mask_broadcast_f32x4(v[i], 0x00f0, _mm_loadu_ps(p + 4 * ld));
      v[i] = _mm512_mask_broadcast_f32x4(v[i], 0x0f00, _mm_loadu_ps(p + 8 * ld));
      v[i] = _mm512_mask_broadcast_f32x4(v[i], 0xf000, _mm_loadu_ps(p + 12 * ld));
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
    tile[4 * q].v = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    tile[4 * q + 1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    tile[4 * q + 2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    tile[4 * q + 3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }
}

#elif defined(QF_ISA_AVX2)

inline void transpose(Vf (&tile)[kLanes]) {
  __m256 pair[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(tile[i].v, tile[i + 1].v);
    pair[i + 1] = _mm256_unpackhi_ps(tile[i].v, tile[i + 1].v);
  }
  __m256 quad[8];
  for (int g = 0; g < 2; ++g) {
    for (int half = 0; half < 2; ++half) {
      const __m256 a = pair[4 * g + half], b = pair[4 * g + 2 + half];
      quad[4 * g + 2 * half] = _mm256_shuffle_ps(a, b, 0x44);
      quad[4 * g + 2 * half + 1] = _mm256_shuffle_ps(a, b, 0xee);
    }
  }
  for (int c = 0; c < 4; ++c) {
    tile[c].v = _mm256_permute2f128_ps(quad[c], quad[4 + c], 0x20);
    tile[4 + c].v = _mm256_permute2f128_ps(quad[c], quad[4 + c], 0x31);
  }
}

#else

inline void transpose(Vf (&tile)[kLanes]) {
  float rows[kLanes][kLanes], columns[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) store(rows[i], tile[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) columns[j][i] = rows[i][j];
  }
  for (int i = 0; i < kLanes; ++i) tile[i] = load(columns[i]);
}

#endif

#if !defined(QF_ISA_AVX512)
inline void load_transposed(const float* rows, int64_t ld, Vf (&tile)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) tile[i] = load(rows + i * ld);
  transpose(tile);
}
#endif

}  // namespace qformer::cpu::QF_ISA
