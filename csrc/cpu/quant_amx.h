// Products of many rows with group-quantised weights on the matrix unit (AMX), the bits of quant_outer.h.
//
// A tile instruction adds the products of 64 columns, one unit, as integers: of up to 16 rows of x in an A tile (64
// bytes a row) and 16 rows of w in a B tile (row q: columns 4q to 4q + 3 of every row of w). The levels of x have 16
// bits, the matrix unit multiplies 8: high and low bytes make two products, whose sums meet again in vectors, are
// scaled and added to f32, which takes a third of the time.
//
// Measured on one thread of an Emerald Rapids Xeon, n = k = 2048, against quant_outer.h in alternating runs (medians of
// three), int4 and int8: m = 16 1.9 and 1.6 times as fast, m = 128 2.5 and 2.2 times, m = 257 2.1 and 2.0 times.
//   a step of x, M rows: [M][64] high bytes, [M][64] low bytes, M scales      of w: [2][16][16][4], the scales
#pragma once

#include "linear_amx.h"
#include "quant_outer.h"

namespace qformer::cpu::QF_ISA {

constexpr int64_t kAmxXUnits = 2 * kUnitQuads + 1, kAmxWUnits = kUnitQuads + 1;
constexpr int kAmxRows = 16;

inline void amx_pack_x(const float* x, int64_t ldx, int64_t rows, int64_t k, float* out, int64_t lane_stride) {
  pack_units_of_x<kAmxXUnits>(x, ldx, rows, k, out, lane_stride, [&](const int16_t* levels, float* to, int64_t row) {
    auto* high = reinterpret_cast<int8_t*>(to) + row * kQuantUnit;
    split_levels(levels, high, high + rows * kQuantUnit);
  });
}

// As PairParts, of quads.
template <int kBits>
struct QuadParts {
  static constexpr int64_t kUnits = kAmxWUnits;
  static constexpr int kCount = QuantForm<kBits>::kWordQuads;
  static Vi part(Vi word, int i) {
    return {_mm512_sub_epi8(byte_part<kBits>(word, i).v, _mm512_set1_epi8(static_cast<char>(quant_zero(kBits))))};
  }
  static constexpr int64_t place(int64_t half, int64_t word, int i) {
    return half * kTileFloats + (word * kCount + i) * kLanes;
  }
};

// Sums of products of one step: [columns' half][high or low bytes of x][row][column].
using UnitSums = int32_t[2][2][kTileFloats];

inline __attribute__((always_inline)) void unit_products(const float* x, const float* w, int64_t rows, UnitSums& sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, x, kQuantUnit);
  _tile_loadd(6, w, 64);
  _tile_dpbssd(0, 4, 6);
  _tile_loadd(5, x + rows * kUnitQuads, kQuantUnit);
  _tile_dpbssd(1, 5, 6);
  _tile_loadd(7, w + kTileFloats, 64);
  _tile_dpbssd(2, 4, 7);
  _tile_dpbssd(3, 5, 7);
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  _tile_stored(2, sums[1][0], 64);
  _tile_stored(3, sums[1][1], 64);
}

template <int M>
struct QuantAmxTile {
  static constexpr int64_t kXStep = kAmxXUnits * M, kWStep = kAmxWUnits * kOuterColumns;
  static constexpr int64_t kStepsAtOnce = 4;

  // Adds the terms of `steps` steps to one half of the columns.
  static void add_terms(const UnitSums* products, const float* x_scales, const float* w_scales, int64_t steps, int half,
                        const TileSums& sums, bool first, bool last) {
    Vf sum[M];
    float* at = sums.at + half * kLanes;
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) sum[m] = first && sums.fresh ? zero() : load(at + m * kOuterColumns);
    for (int64_t s = 0; s < steps; s++, products++, x_scales += kXStep, w_scales += kWStep) {
      const Vf scales = load(w_scales + half * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        const __m512i high = _mm512_slli_epi32(load_bits((*products)[half][0] + 16 * m).v, 8);
        const Vi total = Vi{high} + load_bits((*products)[half][1] + 16 * m);
        sum[m] = fma(to_float(total), scales * broadcast(x_scales[m]), sum[m]);
      }
    }
    for (int level = 0; last && level < sums.merges; level++) {
      const float* waiting = sums.waiting + level * sums.level_stride + half * kLanes;
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) sum[m] = load(waiting + m * kOuterColumns) + sum[m];
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) store(at + m * kOuterColumns, sum[m]);
  }

  static void run(const float* x, const float* w, int64_t steps, const TileSums& sums) {
    alignas(64) UnitSums products[kStepsAtOnce];
    int64_t first = 0;
    do {
      const int64_t count = smaller(kStepsAtOnce, steps - first);
      for (int64_t s = 0; s < count; s++) unit_products(x + s * kXStep, w + s * kWStep, M, products[s]);
      for (int half = 0; half < 2; half++) {
        add_terms(products, x + 2 * kUnitQuads * M, w + kUnitQuads * kOuterColumns, count, half, sums, first == 0,
                  first + count == steps);
      }
      x += count * kXStep;
      w += count * kWStep;
      first += count;
    } while (first < steps);
  }
};

struct QuantAmxTiles {
  static constexpr int kRows = kAmxRows;
  static constexpr int64_t kXUnits = kAmxXUnits, kWUnits = kAmxWUnits;
  template <int M>
  using Tile = QuantAmxTile<M>;
};

inline void amx_quant_products(const OuterJob& job) {
  _tile_loadconfig(&kTileConfigs[4]);
  outer_products<QuantAmxTiles>(job);
  _tile_release();
}

inline constexpr QuantOuterKernels kQuantAmxKernels = {
    12,
    kAmxRows,
    kOuterColumns,
    kAmxXUnits,
    kAmxWUnits,
    {amx_pack_x, outer_pack_quant_w<8, QuadParts<8>>},
    {amx_pack_x, outer_pack_quant_w<4, QuadParts<4>>},
    amx_quant_products,
};

}  // namespace qformer::cpu::QF_ISA
