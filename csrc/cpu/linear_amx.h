// bf16 products on the matrix unit (AMX): yᵀ = w · xᵀ, so that weights are read as they lie in memory.
//
// One tile instruction multiplies 16 rows of w by 32 columns of k (an A tile: 16 rows of 64 bytes, ldw apart) with up
// to 16 rows of x (a B tile: row p holds the pair k = 2p, 2p + 1 of every row of x) and adds to 16 x 16 sums in f32 (a
// C tile). Canonical order of one output element: these instructions in ascending k, the tail zero-filled; C tiles that
// wait in memory between panels of k keep their bits. Two A and two B tiles make four products of four loads; loads
// that hit L1 hide behind the products. A third B tile, where one would be left alone, keeps the unit busy as well: two
// chains of products do not, as one product takes 16 cycles but its sums are ready after 52.
//
// Of what is loaded, w is used again soonest, so x and the sums are loaded with the hint that L1 need not keep them
// (tileloaddt1): a panel of w may then fill two thirds of L1. One tile of x alone is small, and the rows of a narrow
// one share lines, which that hint would fetch from L2 row by row. Complete sums are turned and finished piece by piece
// between the products of the next block, so that the unit does not wait for the vector units.
//
// The unit ignores MXCSR: it rounds to nearest even, and subnormal inputs and sums count as zero. NaN and infinity
// propagate. Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter 20.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "linear_amx_finish.h"

namespace qformer::cpu::QF_ISA {

// The operand of ldtilecfg: bytes per row and rows of each tile register.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Registers 5 and 6: A, 4 and 7: B, the others C, with `columns` rows of x in B and C; where all tiles are full, any
// use.
constexpr TileConfig tile_config(int columns) {
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.rows[i] = 16;
    config.row_bytes[i] = static_cast<uint16_t>(i == 5 || i == 6 ? 64 : 4 * columns);
  }
  return config;
}

inline constexpr TileConfig kTileConfigs[] = {tile_config(1), tile_config(2), tile_config(4), tile_config(8),
                                              tile_config(16)};

inline void configure_tiles(int32_t columns) { _tile_loadconfig(&kTileConfigs[__builtin_ctz(columns)]); }

inline void release_tiles() { _tile_release(); }

// 32 columns of one row of x as bf16, zeros from column `count` on. The conversion takes subnormal numbers for zero, as
// the products would.
inline Vf bf16_step(const float* x, int64_t count) {
  const Vf low = count >= 16 ? load(x) : load_partial(x, count);
  const Vf high = count >= 32 ? load(x + 16) : count > 16 ? load_partial(x + 16, count - 16) : zero();
  return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)))};
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
    if (rows == 16 && count >= 32) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) tile[i] = bf16_step(x + i * ldx + 32 * s, 32);
    } else {
      for (int64_t i = 0; i < 16; i++) tile[i] = i < rows ? bf16_step(x + i * ldx + 32 * s, count) : zero();
    }
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

inline void prefetch_rows(const TileJob& job, int64_t block, int64_t step) {
  const int64_t first = block * job.ahead_rows;
  const int64_t last = smaller(first + job.ahead_rows, 32);
  for (int64_t row = first; row < last; row++) {
    __builtin_prefetch(moved(job.ahead, row * job.ahead_stride + 64 * step), 0, 2);
  }
}

template <int Tiles>
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Tiles > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  if constexpr (Tiles > 2) {
    _tile_zero(4);
    _tile_zero(5);
  }
}

template <int Tiles>
inline void load_sums(const float* c) {
  _tile_stream_loadd(0, c, 64);
  _tile_stream_loadd(1, c + kTileFloats, 64);
  if constexpr (Tiles > 1) {
    _tile_stream_loadd(2, c + 2 * kTileFloats, 64);
    _tile_stream_loadd(3, c + 3 * kTileFloats, 64);
  }
  if constexpr (Tiles > 2) {
    _tile_stream_loadd(4, c + 4 * kTileFloats, 64);
    _tile_stream_loadd(5, c + 5 * kTileFloats, 64);
  }
}

template <int Tiles>
inline void store_sums(float* c) {
  _tile_stored(0, c, 64);
  _tile_stored(1, c + kTileFloats, 64);
  if constexpr (Tiles > 1) {
    _tile_stored(2, c + 2 * kTileFloats, 64);
    _tile_stored(3, c + 3 * kTileFloats, 64);
  }
  if constexpr (Tiles > 2) {
    _tile_stored(4, c + 4 * kTileFloats, 64);
    _tile_stored(5, c + 5 * kTileFloats, 64);
  }
}

// Where the A tiles of a pair of them lie, from one step to the next.
struct TilesOfW {
  const char* first;
  int64_t stride, tile, step;
};

// What accompanies the products of a step.
inline void between_products(const TileJob& job, int64_t block, int64_t step) {
  prefetch_rows(job, block, step);
  finish_next(*job.waiting);
}

// Two A tiles with `Tiles` B tiles over all steps of the job. Sums start from `from` and go to `out`. Copying: the
// tiles of w go to job.copy on the way.
template <int Tiles, bool Copying>
inline void multiply_block(const TileJob& job, TilesOfW w, int64_t tile, const float* from, float* out) {
  const int64_t x_row = job.columns * 4, block = tile / 2;
  const char* x = static_cast<const char*>(job.x) + tile * job.x_stride;
  auto* copy = static_cast<char*>(job.copy);
  if (job.fresh) {
    zero_sums<Tiles>();
  } else {
    load_sums<Tiles>(from);
  }
  for (int64_t s = 0; s < job.steps; s++) {
    between_products(job, block, s);
    if constexpr (Tiles == 1) {
      _tile_loadd(7, x, x_row);
    } else {
      _tile_stream_loadd(7, x, x_row);
    }
    _tile_loadd(6, w.first, w.stride);
    _tile_dpbf16ps(0, 6, 7);
    if constexpr (Tiles < 3) {
      _tile_loadd(5, w.first + w.tile, w.stride);
      _tile_dpbf16ps(1, 5, 7);
      if constexpr (Tiles == 2) {
        _tile_stream_loadd(4, x + job.x_stride, x_row);
        _tile_dpbf16ps(2, 6, 4);
        _tile_dpbf16ps(3, 5, 4);
      }
      if constexpr (Copying) {
        _tile_stored(6, copy, 64);
        _tile_stored(5, copy + kTileBytes, 64);
        copy += 2 * kTileBytes;
      }
    } else {
      _tile_loadd(6, w.first + w.tile, w.stride);
      _tile_dpbf16ps(1, 6, 7);
      _tile_stream_loadd(7, x + job.x_stride, x_row);
      _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(6, w.first, w.stride);
      _tile_dpbf16ps(2, 6, 7);
      _tile_stream_loadd(7, x + 2 * job.x_stride, x_row);
      _tile_dpbf16ps(4, 6, 7);
      _tile_loadd(6, w.first + w.tile, w.stride);
      _tile_dpbf16ps(5, 6, 7);
    }
    w.first += w.step;
    x += 16 * x_row;
  }
  finish_waiting(*job.waiting);
  store_sums<Tiles>(out);
}

inline void multiply_tiles(const TileJob& job) {
  TilesOfW w{static_cast<const char*>(job.w), job.w_stride, job.w_tile, job.w_step};
  bool copying = job.copy != nullptr;
  for (int64_t tile = 0, tiles; tile < job.x_tiles; tile += tiles) {
    const int64_t left = job.x_tiles - tile;
    const float* from = job.sums + 2 * tile * kTileFloats;
    float* out = job.finish != nullptr ? job.waiting->sums : job.sums + 2 * tile * kTileFloats;
    tiles = left == 3 && !copying ? 3 : smaller(left, 2);
    if (tiles == 3) {
      multiply_block<3, false>(job, w, tile, from, out);
    } else if (tiles == 2 && copying) {
      multiply_block<2, true>(job, w, tile, from, out);
    } else if (tiles == 2) {
      multiply_block<2, false>(job, w, tile, from, out);
    } else {
      multiply_block<1, false>(job, w, tile, from, out);
    }
    if (job.finish != nullptr) put_waiting(job, tile, tiles);
    if (copying) w = {static_cast<const char*>(job.copy), 64, kTileBytes, 2 * kTileBytes};
    copying = false;
  }
}

inline constexpr TileKernels kTileKernels = {configure_tiles, release_tiles,  pack_x_tiles,
                                             copy_w_tiles,    multiply_tiles, finish_waiting};

}  // namespace qformer::cpu::QF_ISA
