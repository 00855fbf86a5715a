// Products of many rows with group-quantised weights on the matrix unit (AMX), the bits of quant_outer.h.
//
// A tile instruction adds the products of 64 columns, one unit, as integers: of up to 16 rows of x in an A tile (64
// bytes a row) and 16 rows of w in a B tile (row q: columns 4q to 4q + 3 of every row of w). The levels of x have 16
// bits, the matrix unit multiplies 8: high and low bytes make two products, whose sums meet again in vectors, are
// scaled and added to f32, which takes a third of the time.
//
// Measured on one thread of an Emerald Rapids Xeon, n = k = 2048, against quant_outer.h in alternating runs (medians of
// three), int4 and int8: m = 16 1.9 and 1.6 times as fast, m = 128 2.5 and 2.2 times, m = 257 2.1 and 2.0 times.
//   a step of x, M rows: [M][64] high bytes, [M][64] low bytes, M scales      of w: [16][kOuterColumns][4], the scales
#pragma once

#include "linear_amx.h"
#include "quant_outer.h"

namespace qformer::cpu::QF_ISA {

constexpr int64_t kUnitQuads = kQuantUnit / 4;
constexpr int64_t kAmxXUnits = 2 * kUnitQuads + 1, kAmxWUnits = kUnitQuads + 1;
constexpr int kAmxRows = 16;

// Low and high bytes of pairs of words, those of `first` first.
inline __m512i low_bytes(__m512i first, __m512i second) {
  return _mm512_or_si512(_mm512_and_si512(first, _mm512_set1_epi16(255)), _mm512_slli_epi16(second, 8));
}
inline __m512i high_bytes(__m512i first, __m512i second) {
  return _mm512_or_si512(_mm512_srli_epi16(first, 8), _mm512_andnot_si512(_mm512_set1_epi16(255), second));
}

// Columns of a unit: in order for int8; for int4 the even ones, then the odd ones.
template <int kBits>
void amx_pack_x(const void* x, int64_t rows, int64_t blocks, float* out, int64_t lane_stride) {
  using Form = QuantForm<kBits>;
  const auto* from = static_cast<const QuantX*>(x);
  for (int64_t block = 0; block < blocks; block++, out += rows * kAmxXUnits) {
    for (int64_t row = 0; row < rows; row++) {
      const QuantX& source = from[row * blocks + block];
      for (int64_t vector = 0; vector < Form::kVectors; vector++) {
        __m512i planes[Form::kPlanes];
        for (int i = 0; i < Form::kPlanes; i++) {
          planes[i] = load_bits(source.levels + vector * Form::kVectorColumns + i * 2 * kLanes).v;
        }
        constexpr int kPairs = Form::kPlanes / 2, kPart = 4 * Form::kUnitLanes;  // bytes of a unit in a pair of planes
        alignas(64) char high[kPairs][64], low[kPairs][64];
        for (int i = 0; i < kPairs; i++) {
          _mm512_store_si512(high[i], high_bytes(planes[i], planes[i + kPairs]));
          _mm512_store_si512(low[i], low_bytes(planes[i], planes[i + kPairs]));
        }
        constexpr int kUnits = kLanes / Form::kUnitLanes;
        for (int unit = 0; unit < kUnits; unit++) {
          const int lane = static_cast<int>(vector) * kUnits + unit;
          auto* to = reinterpret_cast<char*>(out + lane_at(lane) * lane_stride) + row * kQuantUnit;
          for (int i = 0; i < kPairs; i++) {
            __builtin_memcpy(to + i * kPart, high[i] + unit * kPart, kPart);
            __builtin_memcpy(to + rows * kQuantUnit + i * kPart, low[i] + unit * kPart, kPart);
          }
        }
      }
      for (int lane = 0; lane < kLanes; lane++) {
        out[lane_at(lane) * lane_stride + 2 * kUnitQuads * rows + row] = source.scale[lane];
      }
    }
  }
}

// One block of up to kLanes rows of w, `stride` bytes apart.
template <int kBits>
struct PackQuads {
  using Form = QuantForm<kBits>;
  static constexpr int64_t kUnits = kAmxWUnits;
  static constexpr int kParts = 8 / kBits;  // low and high halves of a byte

  static __m512i part(__m512i packed, int i) {
    if (kBits == 8) return packed;
    const __m512i level =
        _mm512_and_si512(_mm512_srli_epi16(packed, static_cast<unsigned>(4 * i)), _mm512_set1_epi8(15));
    return _mm512_sub_epi8(level, _mm512_set1_epi8(8));
  }

  static void block(const uint8_t* q, int64_t stride, int64_t rows, float* out, int64_t lane_stride) {
    for (int64_t vector = 0; vector < Form::kVectors; vector++) {
      for (int i = 0; i < kParts; i++) {
        Vf tile[kLanes];
        turn_step(
            rows, [&](int row) { return as_float({part(load_bits(q + row * stride + vector * kVectorBytes).v, i)}); },
            tile);
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; lane++) {
          const int64_t at = vector * kLanes + lane, quad = i * Form::kUnitLanes + at % Form::kUnitLanes;
          store(out + lane_at(static_cast<int>(at / Form::kUnitLanes)) * lane_stride + quad * kOuterColumns,
                tile[lane]);
        }
      }
    }
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
  _tile_loadd(6, w, kOuterColumns * 4);
  _tile_dpbssd(0, 4, 6);
  _tile_loadd(5, x + rows * kUnitQuads, kQuantUnit);
  _tile_dpbusd(1, 5, 6);
  _tile_loadd(7, w + kLanes, kOuterColumns * 4);
  _tile_dpbssd(2, 4, 7);
  _tile_dpbusd(3, 5, 7);
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
    7,
    kAmxRows,
    kAmxXUnits,
    kAmxWUnits,
    {amx_pack_x<8>, outer_pack_quant_w<8, PackQuads<8>>},
    {amx_pack_x<4>, outer_pack_quant_w<4, PackQuads<4>>},
    amx_quant_products,
};

}  // namespace qformer::cpu::QF_ISA
