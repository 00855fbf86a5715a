// Products of many rows with group-quantised weights: the outer products of outer_products.h with a unit as a step,
// which has kUnitPairs pairs of 16-bit numbers and a scale for each row. Sums of pairs stay integers until the unit
// ends.
#pragma once

#include "outer_products.h"
#include "quant_dot.h"

namespace qformer::cpu::QF_ISA {

constexpr int kQuantOuterRows = kRegisters == 32 ? 6 : 3;
constexpr int64_t kUnitPairs = kQuantUnit / 2;
constexpr int64_t kStepUnits = kUnitPairs + 1;

// Packs `rows` rows of x as a tile of outer_products.h. put_unit(levels, to, row) stores the levels of a unit of a row
// in a step at `to`, which takes kUnits units for a row, the last of them its scale.
template <int64_t kUnits, class PutUnit>
inline void pack_units_of_x(const float* x, int64_t ldx, int64_t rows, int64_t k, float* out, int64_t lane_stride,
                            PutUnit put_unit) {
  const int64_t units = k / kQuantUnit;
  for (int64_t first = 0; first < units; first += kLanes, out += rows * kUnits) {
    const int64_t count = smaller(kLanes, units - first);
    for (int64_t row = 0; row < rows; row++) {
      alignas(64) int16_t levels[kBlockColumns];
      float scales[kLanes];
      round_x(x + row * ldx + first * kQuantUnit, count, levels, scales);
      for (int lane = 0; lane < count; lane++) {
        float* to = out + lane_at(lane) * lane_stride;
        put_unit(levels + lane * kQuantUnit, to, row);
        to[(kUnits - 1) * rows + row] = scales[lane];
      }
    }
  }
}

// Pairs are columns 0 and 2, then 1 and 3 of each quad, since shifts and masks take weights apart like that.
inline void outer_pack_quant_x(const float* x, int64_t ldx, int64_t rows, int64_t k, float* out, int64_t lane_stride) {
  pack_units_of_x<kStepUnits>(x, ldx, rows, k, out, lane_stride, [&](const int16_t* levels, float* to, int64_t row) {
    to += row;
    for (int64_t quad = 0; quad < kUnitQuads; quad++, levels += 4, to += 2 * rows) {
      const int16_t even[2] = {levels[0], levels[2]}, odd[2] = {levels[1], levels[3]};
      __builtin_memcpy(to, even, 4);
      __builtin_memcpy(to + rows, odd, 4);
    }
  });
}

// The parts of a word of kLanes rows of w: their number, and part i as a step has it, place(half, word, i) units from
// its beginning, `half` of the panel's columns.
template <int kBits>
struct PairParts {
  static constexpr int64_t kUnits = kStepUnits;
  static constexpr int kCount = 2 * QuantForm<kBits>::kWordQuads;
  static Vi part(Vi word, int i) { return less(word_part<kBits>(word, i), quant_zero(kBits)); }
  static constexpr int64_t place(int64_t half, int64_t word, int i) {
    constexpr int kQuads = QuantForm<kBits>::kWordQuads;
    return (2 * (word * kQuads + i % kQuads) + i / kQuads) * kOuterColumns + half * kLanes;
  }
};

// Packs `columns` rows of w into a panel of outer_products.h, zeros for the rest. The scales of a step are its last
// unit.
template <int kBits, class Parts>
void outer_pack_quant_w(const QuantRows& w, int64_t columns, float* out, int64_t lane_stride) {
  using Form = QuantForm<kBits>;
  const int64_t row_bytes = Form::row_bytes(w), row_groups = w.k / w.group, units = w.k / kQuantUnit;
  for (int64_t half = 0; half < 2; half++) {
    const int64_t rows = columns <= half * kLanes ? 0 : smaller(kLanes, columns - half * kLanes);
    const QuantRows from = Form::row(w, half * kLanes);
    float* to = out;
    for (int64_t first = 0; first < units; first += kLanes, to += Parts::kUnits * kOuterColumns) {
      const int64_t count = smaller(kLanes, units - first);
      const UnitPlace place = unit_place(first, units, kBits);
      const uint8_t* q = from.q + place.from;
      Vf tile[kLanes];
      for (int64_t word = 0; word < Form::kWords; word++, q += place.stride) {
        if (count == kLanes) {
          turn_step(
              rows, [&](int row) { return as_float(load_word<true>(q + row * row_bytes, count)); }, tile);
        } else {
          turn_step(
              rows, [&](int row) { return as_float(load_word<false>(q + row * row_bytes, count)); }, tile);
        }
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; lane++) {
#pragma GCC unroll 4
          for (int i = 0; i < Parts::kCount; i++) {
            store(to + lane_at(lane) * lane_stride + Parts::place(half, word, i),
                  as_float(Parts::part(as_bits(tile[lane]), i)));
          }
        }
      }
      int32_t group[kLanes];
      const int64_t first_group = unit_groups(first, count, w.group, group);
      const Vi index = load_bits(group);
      const int64_t groups = smaller(row_groups - first_group, kLanes);
      turn_step(
          rows,
          [&](int row) {
            return spread(load_bf16_partial(from.scales + row * row_groups + first_group, groups), index);
          },
          tile);
      for (int lane = 0; lane < kLanes; lane++) {
        store(to + lane_at(lane) * lane_stride + (Parts::kUnits - 1) * kOuterColumns + half * kLanes, tile[lane]);
      }
    }
  }
}

template <int M>
struct QuantTile {
  static void run(const float* x, const float* w, int64_t steps, const TileSums& sums) {
    Vf sum[M][2];
    load_sums<M>(sums, sum);
    for (int64_t s = 0; s < steps; s++) {
      Vi unit[M][2];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) unit[m][0] = unit[m][1] = zero_bits();
#pragma GCC unroll 2
      for (int64_t pair = 0; pair < kUnitPairs; pair++, x += M, w += kOuterColumns) {
        const Vi left = load_bits(w), right = load_bits(w + kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
          const Vi value = broadcast_bits(x + m);
          unit[m][0] = mac_i16(unit[m][0], value, left);
          unit[m][1] = mac_i16(unit[m][1], value, right);
        }
      }
      const Vf left = load(w), right = load(w + kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        const Vf scale = broadcast(x[m]);
        sum[m][0] = fma(to_float(unit[m][0]), left * scale, sum[m][0]);
        sum[m][1] = fma(to_float(unit[m][1]), right * scale, sum[m][1]);
      }
      x += M;
      w += kOuterColumns;
    }
    store_sums<M>(sums, sum);
  }
};

struct QuantTiles {
  static constexpr int kRows = kQuantOuterRows;
  static constexpr int64_t kXUnits = kStepUnits, kWUnits = kStepUnits;
  template <int M>
  using Tile = QuantTile<M>;
};

inline constexpr QuantOuterKernels kQuantOuterKernels = {
    17,
    kQuantOuterRows,
    kOuterColumns,
    kStepUnits,
    kStepUnits,
    {outer_pack_quant_x, outer_pack_quant_w<8, PairParts<8>>},
    {outer_pack_quant_x, outer_pack_quant_w<4, PairParts<4>>},
    outer_products<QuantTiles>,
};

}  // namespace qformer::cpu::QF_ISA
