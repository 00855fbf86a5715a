// bf16 products on the matrix unit (AMX): yᵀ = w · xᵀ, so that weights are read as they lie in memory.
//
// One tile instruction multiplies 16 rows of w by 32 columns of k (an A tile: 16 rows of 64 bytes, ldw apart) with up
// to 16 rows of x (a B tile: row p holds the pair k = 2p, 2p + 1 of every row of x) and adds to 16 x 16 sums in f32 (a
// C tile). Canonical order of one output element: these instructions in ascending k, the tail zero-filled; C tiles that
// wait in memory between panels of k keep their bits. Two A and two B tiles make four products of four loads, which is
// what the eight tile registers allow; loads that hit L1 hide behind the products.
//
// The unit ignores MXCSR: it rounds to nearest even, and subnormal inputs and sums count as zero. NaN and infinity
// propagate. Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter 20.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "transpose.h"

namespace qformer::cpu::QF_ISA {

constexpr int kTileFloats = 256;  // of a C tile: 16 rows of 64 bytes, however many columns are in use
constexpr int kTileBytes = 1024;  // of an A tile

// The operand of ldtilecfg: bytes per row and rows of each tile register.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Registers 0 to 3: C, 4 and 5: A, 6 and 7: B, with `columns` rows of x in B and C.
constexpr TileConfig tile_config(int columns) {
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.rows[i] = 16;
    config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? 64 : 4 * columns);
  }
  return config;
}

inline constexpr TileConfig kTileConfigs[] = {tile_config(1), tile_config(2), tile_config(4), tile_config(8),
                                              tile_config(16)};

inline void configure_tiles(int32_t columns) { _tile_loadconfig(&kTileConfigs[__builtin_ctz(columns)]); }

inline void release_tiles() { _tile_release(); }

// 32 columns of one row of x as bf16, zeros from column `count` on.
inline Vf bf16_step(const float* x, int64_t count) {
  const Vf low = count >= 16 ? load(x) : load_partial(x, count);
  const Vf high = count >= 32 ? load(x + 16) : count > 16 ? load_partial(x + 16, count - 16) : zero();
  return {_mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1))};
}

inline void pack_x_tiles(const float* x, int64_t ldx, int64_t rows, int64_t k, int32_t columns, int64_t steps,
                         void* out) {
  auto* y = static_cast<float*>(out);  // pairs of bf16
  for (int64_t s = 0; s < steps; s++, y += 16 * columns) {
    const int64_t count = k - 32 * s;
    if (columns == 1) {
      store(y, bf16_step(x + 32 * s, count));
      continue;
    }
    Vf tile[16];
    for (int64_t i = 0; i < 16; i++) tile[i] = i < rows ? bf16_step(x + i * ldx + 32 * s, count) : zero();
    transpose(tile);
    for (int p = 0; p < 16; p++) store_partial(y + p * columns, tile[p], columns);
  }
}

inline void copy_w_tiles(const void* w, int64_t ldw, int64_t rows, int64_t k, void* out) {
  const auto* from = static_cast<const uint16_t*>(w);
  auto* to = static_cast<char*>(out);
  for (int64_t i = 0; i < k; i += 32) {
    const uint32_t mask = k - i >= 32 ? ~0u : (1u << (k - i)) - 1;
    for (int64_t row = 0; row < 32; row++, to += 64) {
      const __m512i step = row < rows ? _mm512_maskz_loadu_epi16(mask, from + row * ldw + i) : _mm512_setzero_si512();
      _mm512_store_si512(to, step);
    }
  }
}

inline const char* moved(const void* base, int64_t bytes) {
  return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(bytes));
}

inline void prefetch_rows(const TileJob& job, int64_t pass, int64_t step) {
  const char* base = step < job.ahead_steps ? job.ahead : job.then;
  const int64_t first = pass * job.ahead_rows;
  const int64_t last = first + job.ahead_rows < 32 ? first + job.ahead_rows : 32;
  for (int64_t row = first; row < last; row++) {
    __builtin_prefetch(moved(base, row * job.ahead_stride + 64 * step), 0, 2);
  }
}

// Two A tiles with one or two B tiles over all steps of the job.
template <bool Two>
inline void multiply_block(const TileJob& job, int64_t pass, const char* x, int64_t x_next, float* c) {
  const char* w = static_cast<const char*>(job.w);
  const int64_t columns_bytes = job.columns * 4;
  if (job.fresh) {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (Two) {
      _tile_zero(1);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, c, 64);
    _tile_loadd(2, c + kTileFloats, 64);
    if constexpr (Two) {
      _tile_loadd(1, c + 2 * kTileFloats, 64);
      _tile_loadd(3, c + 3 * kTileFloats, 64);
    }
  }
  for (int64_t s = 0; s < job.steps; s++) {
    prefetch_rows(job, pass, s);
    _tile_loadd(6, x, columns_bytes);
    _tile_loadd(4, w, job.w_stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Two) {
      _tile_loadd(7, x + x_next, columns_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, w + job.w_tile, job.w_stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (Two) _tile_dpbf16ps(3, 5, 7);
    w += job.w_step;
    x += 16 * columns_bytes;
  }
  _tile_stored(0, c, 64);
  _tile_stored(2, c + kTileFloats, 64);
  if constexpr (Two) {
    _tile_stored(1, c + 2 * kTileFloats, 64);
    _tile_stored(3, c + 3 * kTileFloats, 64);
  }
}

inline void multiply_tiles(const TileJob& job) {
  const auto* x = static_cast<const char*>(job.x);
  int64_t i = 0;
  for (; i + 2 <= job.x_tiles; i += 2) {
    multiply_block<true>(job, i / 2, x + i * job.x_stride, job.x_stride, job.c + 2 * i * kTileFloats);
  }
  if (i < job.x_tiles) multiply_block<false>(job, i / 2, x + i * job.x_stride, 0, job.c + 2 * i * kTileFloats);
}

// sums[i * ld + j * stride] = column i, row j of a pair of C tiles, for i < rows and j < 32.
inline void turn_tiles(const float* c, int64_t rows, float* sums, int64_t ld, int64_t stride) {
  const __m512i index = _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(stride)),
                                           _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  for (int half = 0; half < 2; half++, c += kTileFloats, sums += 16 * stride) {
    Vf tile[16];
    for (int j = 0; j < 16; j++) tile[j] = load(c + 16 * j);
    transpose(tile);
    for (int64_t i = 0; i < rows; i++) {
      if (stride == 1) {
        store(sums + i * ld, tile[i]);
      } else {
        _mm512_i32scatter_ps(sums + i * ld, index, tile[i].v, 4);
      }
    }
  }
}

inline constexpr TileKernels kTileKernels = {configure_tiles, release_tiles,  pack_x_tiles,
                                             copy_w_tiles,    multiply_tiles, turn_tiles};

}  // namespace qformer::cpu::QF_ISA
