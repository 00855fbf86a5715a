// Products of many rows with group-quantised weights: the outer products of linear_outer.h with a unit as a step, which
// has kUnitPairs pairs of 16-bit numbers and a scale for each row. Sums of pairs stay integers until the unit ends.
#pragma once

#include "linear_outer.h"
#include "quant_dot.h"

namespace qformer::cpu::QF_ISA {

constexpr int kQuantOuterRows = kRegisters == 32 ? 6 : 3;
constexpr int64_t kStepUnits = kUnitPairs + 1;

// Calls put(place, pair, lane) for the pairs of plane `plane` of vector `vector` of a block: of the unit at `place` of
// the walk over the lanes, pair `pair`, which is lane `lane` of the plane.
template <int kBits, class Put>
inline void each_pair(int64_t vector, int64_t plane, Put put) {
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; lane++) {
    constexpr int64_t kUnitLanes = QuantForm<kBits>::kUnitLanes;
    const int64_t at = vector * kLanes + lane;
    put(lane_at(static_cast<int>(at / kUnitLanes)), plane * kUnitLanes + at % kUnitLanes, lane);
  }
}

// Packs `rows` rows of `blocks` blocks as a tile of linear_outer.h.
template <int kBits>
void outer_pack_quant_x(const void* x, int64_t rows, int64_t blocks, float* out, int64_t lane_stride) {
  const auto* from = static_cast<const QuantX*>(x);
  for (int64_t block = 0; block < blocks; block++, out += rows * kStepUnits) {
    for (int64_t row = 0; row < rows; row++) {
      const QuantX& source = from[row * blocks + block];
      const auto* pairs = reinterpret_cast<const char*>(source.levels);
      for (int64_t vector = 0; vector < QuantForm<kBits>::kVectors; vector++) {
        for (int64_t plane = 0; plane < QuantForm<kBits>::kPlanes; plane++, pairs += kVectorBytes) {
          each_pair<kBits>(vector, plane, [&](int64_t place, int64_t pair, int lane) {
            __builtin_memcpy(out + place * lane_stride + pair * rows + row, pairs + 4 * lane, 4);
          });
        }
      }
      for (int lane = 0; lane < kLanes; lane++) {
        out[lane_at(lane) * lane_stride + kUnitPairs * rows + row] = source.scale[lane];
      }
    }
  }
}

// One block of up to kLanes rows of w, `stride` bytes apart.
template <int kBits>
struct PackPairs {
  static constexpr int64_t kUnits = kStepUnits;
  static void block(const uint8_t* q, int64_t stride, int64_t rows, float* out, int64_t lane_stride) {
    for (int64_t vector = 0; vector < QuantForm<kBits>::kVectors; vector++) {
#pragma GCC unroll 4
      for (int i = 0; i < QuantForm<kBits>::kPlanes; i++) {
        Vf tile[kLanes];
        turn_step(
            rows,
            [&](int row) {
              const Vi w = plane<kBits>(load_bits(q + row * stride + vector * kVectorBytes), i);
              return as_float(kBits == 4 ? less_8(w) : w);
            },
            tile);
        each_pair<kBits>(vector, i, [&](int64_t place, int64_t pair, int lane) {
          store(out + place * lane_stride + pair * kOuterColumns, tile[lane]);
        });
      }
    }
  }
};

// Packs `columns` rows of w into a panel of linear_outer.h, zeros for the rest. Pack::block packs the levels of a
// block; the scales of a step are its last unit.
template <int kBits, class Pack>
void outer_pack_quant_w(const QuantRows& w, int64_t columns, float* out, int64_t lane_stride) {
  using Form = QuantForm<kBits>;
  const int64_t row_bytes = Form::row_bytes(w), row_groups = w.k / w.group, units = w.k / kQuantUnit;
  for (int64_t half = 0; half < kOuterColumns; half += kLanes) {
    const int64_t count = columns <= half ? 0 : smaller(kLanes, columns - half);
    const QuantRows from = Form::row(w, half);
    float* to = out + half;
    for (int64_t first = 0; first < units; first += kLanes, to += Pack::kUnits * kOuterColumns) {
      const int64_t start = first / kLanes * Form::kBlockBytes, bytes = row_bytes - start;
      if (bytes >= Form::kBlockBytes) {
        Pack::block(from.q + start, row_bytes, count, to, lane_stride);
      } else {
        uint8_t copies[kLanes * Form::kBlockBytes];
        for (int64_t row = 0; row < count; row++) {
          whole_block<kBits>(from.q + row * row_bytes + start, bytes, copies + row * Form::kBlockBytes);
        }
        Pack::block(copies, Form::kBlockBytes, count, to, lane_stride);
      }
      int32_t group[kLanes];
      const int64_t there = smaller(kLanes, units - first);
      const int64_t first_group = unit_groups(first, there, w.group, group);
      const Vi index = load_bits(group);
      const int64_t groups = smaller(row_groups - first_group, kLanes);
      Vf tile[kLanes];
      turn_step(
          count,
          [&](int row) { return spread(load_partial(from.scales + row * row_groups + first_group, groups), index); },
          tile);
      for (int lane = 0; lane < kLanes; lane++) {
        store(to + lane_at(lane) * lane_stride + (Pack::kUnits - 1) * kOuterColumns, tile[lane]);
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
    9,
    kQuantOuterRows,
    kStepUnits,
    kStepUnits,
    {outer_pack_quant_x<8>, outer_pack_quant_w<8, PackPairs<8>>},
    {outer_pack_quant_x<4>, outer_pack_quant_w<4, PackPairs<4>>},
    outer_products<QuantTiles>,
};

}  // namespace qformer::cpu::QF_ISA
