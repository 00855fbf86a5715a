// transpose(tile): a square of kLanes x kLanes floats, row i in tile[i], turned in registers. turn_groups(tile): a
// square of groups of four lanes.
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

inline void turn_groups(Vf (&tile)[4]) {
  const __m512 low01 = _mm512_shuffle_f32x4(tile[0].v, tile[1].v, 0x44);
  const __m512 low23 = _mm512_shuffle_f32x4(tile[2].v, tile[3].v, 0x44);
  const __m512 high01 = _mm512_shuffle_f32x4(tile[0].v, tile[1].v, 0xee);
  const __m512 high23 = _mm512_shuffle_f32x4(tile[2].v, tile[3].v, 0xee);
  tile[0].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
  tile[1].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
  tile[2].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
  tile[3].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
}

#elif defined(QF_ISA_AVX2)

inline void turn_groups(Vf (&tile)[2]) {
  const __m256 low = _mm256_permute2f128_ps(tile[0].v, tile[1].v, 0x20);
  tile[1].v = _mm256_permute2f128_ps(tile[0].v, tile[1].v, 0x31);
  tile[0].v = low;
}

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

inline void turn_groups(Vf (&)[1]) {}

inline void transpose(Vf (&tile)[kLanes]) {
  float rows[kLanes][kLanes], columns[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) store(rows[i], tile[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) columns[j][i] = rows[i][j];
  }
  for (int i = 0; i < kLanes; ++i) tile[i] = load(columns[i]);
}

#endif

}  // namespace qformer::cpu::QF_ISA
