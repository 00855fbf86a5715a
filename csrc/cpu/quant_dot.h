// Products of rows with group-quantised weights (quant_layout.h) in integers.
//
// x is rounded to 16 bits with a scale for each unit of kQuantUnit columns, about a hundred times finer than bf16. The
// products of a unit are added up exactly, as integers; the sum times the scale of the weights' group times that of x
// is one term. Canonical order of an element: lane j takes the terms of units j, j + L, j + 2L, ... in f32, then
// reduce_add's tree. Every way keeps it, so an element's bits depend on its own row of x and of w only. NaN and
// infinity make the term NaN.
//
// A block is kLanes units, one to a lane, and is walked by quads: four columns of every unit. With byte products
// (AVX-512 VNNI) a level of x is 256 * high + low, two signed bytes; without, pairs of 16-bit numbers are multiplied,
// in the order in which shifts and masks take a word of weights apart.
//
// AVX-512 with VNNI, one row of x: 63 instructions on two ports for 1,024 columns of int4, 39 for as many of int8.
#pragma once

#include "kernels.h"
#include "linear_dot.h"
#include "simd_int16.h"

namespace qformer::cpu::QF_ISA {

constexpr int64_t kUnitQuads = kQuantUnit / 4;
constexpr int64_t kBlockColumns = kQuantUnit * kLanes;
constexpr int64_t kVectorBytes = 4 * kLanes;
// Each load of weights fetches a line this far ahead of it into L1; fetched a block at a time, and into L2, weights
// from DRAM came at four fifths of the rate.
constexpr int64_t kPrefetchScales = 32;  // as far ahead as kPrefetchBytes with groups of a unit
constexpr float kLargestLevel = 127 * 256 + 127;
constexpr float kSmallestUnit = 0x1p-110f;  // one below counts as zero, or the reciprocal of its scale would overflow

// A block of a row of x.
struct alignas(64) QuantX {
  // Of each quad, a vector of high and one of low bytes, or one of columns 0 and 2 and one of columns 1 and 3.
  int8_t levels[kUnitQuads][2][kVectorBytes];
  float scale[kLanes];     // of each unit
  int32_t offset[kLanes];  // what the sum of each unit lacks, since weights are stored plus quant_zero
  int32_t group[kLanes];   // of each unit of w, counted from first_group
  int64_t first_group;
};

// One width of weights.
template <int kBits>
struct QuantForm {
  static constexpr int kWords = unit_words(kBits), kWordQuads = 8 / kBits;

  static int64_t row_bytes(const QuantRows& w) { return w.k * kBits / 8; }
  static QuantRows row(const QuantRows& w, int64_t at) {
    return {w.q + at * row_bytes(w), w.scales + at * (w.k / w.group), w.k, w.group};
  }
};

// The groups of the `count` units from `first` on, counted from the first of them, which is returned; 0 past count.
inline int64_t unit_groups(int64_t first, int64_t count, int64_t group, int32_t* groups) {
  const int64_t group_units = group / kQuantUnit, first_group = first / group_units;
  for (int64_t i = 0; i < kLanes; i++) {
    groups[i] = i < count ? static_cast<int32_t>((first + i) / group_units - first_group) : 0;
  }
  return first_group;
}

// A word of each of `count` units, zeros past them.
template <bool kWhole>
inline Vi load_word(const uint8_t* q, int64_t count) {
  return kWhole ? load_bits(q) : as_bits(load_partial(reinterpret_cast<const float*>(q), count));
}

// ---- x ----

// Levels in the order of columns, and the scales: all NaN where a value is not finite.
inline void round_x(const float* x, int64_t units, int16_t* levels, float* scales) {
  Vf probe = zero();  // x - x is NaN where x is not finite
  for (int64_t unit = 0; unit < units; unit++, x += kQuantUnit, levels += kQuantUnit) {
    Vf magnitude = zero();
#pragma GCC unroll 8
    for (int64_t i = 0; i < kQuantUnit; i += kLanes) {
      const Vf value = load(x + i);
      magnitude = vmax(magnitude, vabs(value));
      probe = probe + (value - value);
    }
    const float largest = reduce_max(magnitude);
    const Vf per_level = broadcast(largest >= kSmallestUnit ? kLargestLevel / largest : 0);
    scales[unit] = largest / kLargestLevel;
#pragma GCC unroll 8
    for (int64_t i = 0; i < kQuantUnit; i += kLanes) {
      const Vf level = load(x + i) * per_level;
      store_i16(levels + i, vmin(vmax(level, broadcast(-kLargestLevel)), broadcast(kLargestLevel)));
    }
  }
  const float spoilt = reduce_add(probe);
  for (int64_t unit = 0; unit < units; unit++) scales[unit] += spoilt;
}

// A block of levels in the order of columns, unit by unit, in that of quads.
inline void pack_levels(const int16_t* levels, QuantX& out) {
#if defined(QF_BYTE_PRODUCTS)
  alignas(64) int8_t bytes[2][kLanes][kQuantUnit];
  for (int unit = 0; unit < kLanes; unit++) split_levels(levels + unit * kQuantUnit, bytes[0][unit], bytes[1][unit]);
  for (int part = 0; part < 2; part++) {
    Vf tile[kLanes];
#pragma GCC unroll 16
    for (int unit = 0; unit < kLanes; unit++) tile[unit] = as_float(load_bits(bytes[part][unit]));
    transpose(tile);
#pragma GCC unroll 16
    for (int quad = 0; quad < kUnitQuads; quad++) store(reinterpret_cast<float*>(out.levels[quad][part]), tile[quad]);
  }
#else
  for (int64_t unit = 0; unit < kLanes; unit++) {
    for (int64_t quad = 0; quad < kUnitQuads; quad++, levels += 4) {
      const int16_t even[2] = {levels[0], levels[2]}, odd[2] = {levels[1], levels[3]};
      __builtin_memcpy(out.levels[quad][0] + 4 * unit, even, 4);
      __builtin_memcpy(out.levels[quad][1] + 4 * unit, odd, 4);
    }
  }
#endif
}

// The sum of the levels of each unit.
inline void level_sums(const QuantX& x, int32_t* sums) {
  Vi sum = zero_bits();
#if defined(QF_BYTE_PRODUCTS)
  constexpr int32_t kOnes = 0x01010101;
  const Vi ones = broadcast_bits(&kOnes);
  Vi low = zero_bits();
  for (const auto& quad : x.levels) {
    sum = mac_bytes(sum, ones, load_bits(quad[0]));
    low = mac_bytes(low, ones, load_bits(quad[1]));
  }
  sum = times_256(sum) + low;
#else
  constexpr int32_t kOnes = 0x00010001;
  const Vi ones = broadcast_bits(&kOnes);
  for (const auto& quad : x.levels) {
    sum = mac_i16(mac_i16(sum, load_bits(quad[0]), ones), load_bits(quad[1]), ones);
  }
#endif
  store(reinterpret_cast<float*>(sums), as_float(sum));
}

template <int kBits>
void pack_quant_x(const float* x, int64_t k, int64_t group, void* out) {
  const int64_t units = k / kQuantUnit;
  auto* block = static_cast<QuantX*>(out);
  for (int64_t first = 0; first < units; first += kLanes, block++) {
    int16_t levels[kBlockColumns] = {};
    const int64_t count = smaller(kLanes, units - first);
    for (int64_t i = count; i < kLanes; i++) block->scale[i] = 0;
    round_x(x + first * kQuantUnit, count, levels, block->scale);
    block->first_group = unit_groups(first, count, group, block->group);
    pack_levels(levels, *block);
    level_sums(*block, block->offset);
    for (int32_t& offset : block->offset) offset *= -quant_zero(kBits);
  }
}

// ---- few rows ----

// The sums of a block: of M rows of x, `ldx` blocks apart, with N rows of w, `stride` bytes apart, of which `count`
// units are there.
template <int kBits, int M, int N, bool kWhole>
inline __attribute__((always_inline)) void block_sums(const QuantX* x, int64_t ldx, const uint8_t* q, int64_t stride,
                                                      int64_t word_stride, int64_t count, Vi (&sum)[M * N]) {
  using Form = QuantForm<kBits>;
#if defined(QF_BYTE_PRODUCTS)
  Vi low[M * N];
#pragma GCC unroll 16
  for (int i = 0; i < M * N; i++) sum[i] = low[i] = zero_bits();
#pragma GCC unroll 16
  for (int word = 0; word < Form::kWords; word++, q += word_stride) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      __builtin_prefetch(q + n * stride + kPrefetchBytes, 0, 3);
      const Vi w = load_word<kWhole>(q + n * stride, count);
#pragma GCC unroll 2
      for (int part = 0; part < Form::kWordQuads; part++) {
        const Vi level = byte_part<kBits>(w, part);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const auto& levels = x[m * ldx].levels[word * Form::kWordQuads + part];
          sum[m * N + n] = mac_bytes(sum[m * N + n], level, load_bits(levels[0]));
          low[m * N + n] = mac_bytes(low[m * N + n], level, load_bits(levels[1]));
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M * N; i++) sum[i] = times_256(sum[i]) + low[i];
#else
#pragma GCC unroll 16
  for (int i = 0; i < M * N; i++) sum[i] = zero_bits();
#pragma GCC unroll 1  // or the compiler moves all products ahead of the sums, and spills them
  for (int word = 0; word < Form::kWords; word++, q += word_stride) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      __builtin_prefetch(q + n * stride + kPrefetchBytes, 0, 3);
      const Vi w = load_word<kWhole>(q + n * stride, count);
#pragma GCC unroll 4
      for (int i = 0; i < 2 * Form::kWordQuads; i++) {
        const Vi level = word_part<kBits>(w, i);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const auto& quad = x[m * ldx].levels[word * Form::kWordQuads + i % Form::kWordQuads];
          sum[m * N + n] = mac_i16(sum[m * N + n], load_bits(quad[i / Form::kWordQuads]), level);
        }
      }
    }
  }
#endif
}

// Adds the terms of a block.
template <int kBits, int M, int N, bool kWhole>
inline __attribute__((always_inline)) void add_block(const QuantX* x, int64_t ldx, const uint8_t* q, int64_t stride,
                                                     int64_t word_stride, int64_t count, const Vf (&scales)[N],
                                                     Vf (&sum)[M * N]) {
  Vi total[M * N];
  block_sums<kBits, M, N, kWhole>(x, ldx, q, stride, word_stride, count, total);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const QuantX& row = x[m * ldx];
    const Vi offset = load_bits(row.offset);
    const Vf scale = load(row.scale);
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      sum[m * N + n] = fma(to_float(total[m * N + n] + offset), scales[n] * scale, sum[m * N + n]);
    }
  }
}

// Reduces M x N accumulators into sums[m * ld + n * stride].
template <int M, int N>
inline void reduce_tile(const Vf (&sum)[M * N], float* sums, int64_t ld, int64_t stride = 1) {
  constexpr int kFull = M * N / kLanes * kLanes, kRest = M * N - kFull;
  float flat[kFull + kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kFull; i += kLanes) store(flat + i, reduce_add_lanes(sum + i));
  if constexpr (2 * kRest >= kLanes && kRest > 1) {
    Vf rest[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) rest[i] = i < kRest ? sum[kFull + i] : zero();
    store(flat + kFull, reduce_add_lanes(rest));
  } else {
#pragma GCC unroll 16
    for (int i = kFull; i < M * N; i++) flat[i] = reduce_add(sum[i]);
  }
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) sums[m * ld + n * stride] = flat[m * N + n];
  }
}

// sums[m * ld_sums + n * stride] = x row m · w row n * stride; x: M rows of `blocks` blocks
template <int kBits, int M, int N>
void quant_rows_tile(const QuantX* x, int64_t blocks, const QuantRows& w, int64_t stride, float* sums,
                     int64_t ld_sums) {
  using Form = QuantForm<kBits>;
  const int64_t row_groups = w.k / w.group, units = w.k / kQuantUnit;
  const int64_t q_stream = stride * Form::row_bytes(w), scale_stream = stride * row_groups;
  Vf sum[M * N];
#pragma GCC unroll 16
  for (int i = 0; i < M * N; i++) sum[i] = zero();
  for (int64_t block = 0; block < blocks; block++, x++) {
    const Vi group = load_bits(x->group);
    const uint16_t* from = w.scales + x->first_group;
    const int64_t groups = smaller(row_groups - x->first_group, kLanes);
    Vf scales[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      __builtin_prefetch(from + n * scale_stream + kPrefetchScales, 0, 3);
      scales[n] = spread(load_bf16_partial(from + n * scale_stream, groups), group);
    }
    const UnitPlace place = unit_place(block * kLanes, units, kBits);
    const int64_t count = smaller(units - block * kLanes, kLanes);
    const uint8_t* q = w.q + place.from;
    if (count == kLanes) {
      add_block<kBits, M, N, true>(x, blocks, q, q_stream, place.stride, count, scales, sum);
    } else {
      add_block<kBits, M, N, false>(x, blocks, q, q_stream, place.stride, count, scales, sum);
    }
  }
  reduce_tile<M, N>(sum, sums, ld_sums, stride);
}

constexpr int kQuantRows = kRegisters == 32 ? 4 : 2;

// Rows of w that share a tile. The rows of a tile lie n / N apart, as in linear_dot.h.
template <int M>
constexpr int quant_columns() {
  return M == 1 ? 6 : kRegisters == 32 ? 6 - M : 2;
}

template <int kBits, int M>
void quant_rows_all_n(const QuantX* x, int64_t blocks, const QuantRows& w, int64_t n, float* sums, int64_t ld_sums) {
  constexpr int N = quant_columns<M>();
  const int64_t stride = n / N;
  int64_t j = 0;
  for (; j < stride; j++) {
    quant_rows_tile<kBits, M, N>(x, blocks, QuantForm<kBits>::row(w, j), stride, sums + j, ld_sums);
  }
  for (j = stride * N; j < n; j++) {
    quant_rows_tile<kBits, M, 1>(x, blocks, QuantForm<kBits>::row(w, j), 1, sums + j, ld_sums);
  }
}

}  // namespace qformer::cpu::QF_ISA
