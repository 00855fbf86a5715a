// Products of rows with group-quantised weights in integers.
//
// x is rounded to 16 bits with a scale for each unit of kQuantUnit columns, about a hundred times finer than bf16. The
// products of a unit are added up exactly, as integers; the sum times the scale of the weights' group times that of x
// is one term. Canonical order of an element: lane j takes the terms of units j, j + L, j + 2L, ... in f32, then
// reduce_add's tree. Both ways below keep it, so an element's bits depend on its own row of x and of w only. NaN and
// infinity make the term NaN.
//
// A block is kLanes units. A vector of packed weights is taken apart into planes: plane i has the i-th weight of every
// 16-bit word, and x lies in the same order, so that unpacking is a shift and a mask. AVX-512 with VNNI, one row of x:
// 53 instructions on two ports for 256 bytes of int4, which outruns the DRAM of one core; widening to f32 took twice
// that.
#pragma once

#include "kernels.h"
#include "linear_dot.h"
#include "simd_int16.h"

namespace qformer::cpu::QF_ISA {

constexpr int64_t kUnitPairs = kQuantUnit / 2;
constexpr int64_t kBlockColumns = kQuantUnit * kLanes;
constexpr int64_t kVectorBytes = 4 * kLanes;
constexpr float kLargestLevel = 32767.0f;
constexpr float kSmallestUnit = 0x1p-110f;  // one below counts as zero, or the reciprocal of its scale would overflow

// A block of a row of x; vectors of levels do not straddle lines of the cache.
struct alignas(64) QuantX {
  int16_t levels[kBlockColumns];  // in the order of the planes
  float scale[kLanes];            // of each unit
  int32_t offset[kLanes];         // what the sum of each unit lacks, since int4 weights are stored plus 8
  int32_t group[kLanes];          // of each unit of w, counted from first_group
  int64_t first_group;
};

// The levels of x that go with a 16-bit word of weights, first in the lowest bits.
template <int kBits>
struct LevelsOfWord {
  using Type = uint32_t;
};
template <>
struct LevelsOfWord<4> {
  using Type = uint64_t;
};

// One width of weights: a row of w is cut into blocks of kVectors vectors, of which a unit takes kUnitLanes lanes.
template <int kBits>
struct QuantForm {
  static constexpr int kPlanes = 16 / kBits;
  static constexpr int kUnitLanes = kQuantUnit * kBits / 32, kVectors = kUnitLanes;
  static constexpr int64_t kBlockBytes = kVectors * kVectorBytes;
  static constexpr int64_t kVectorColumns = kPlanes * 2 * kLanes;

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

// A block of a row of w, of which `bytes` are there: copied and filled with zeros where that is not all of it.
template <int kBits>
inline const uint8_t* whole_block(const uint8_t* row, int64_t bytes, uint8_t* copy) {
  constexpr int64_t kBytes = QuantForm<kBits>::kBlockBytes;
  if (bytes >= kBytes) return row;
  __builtin_memcpy(copy, row, static_cast<size_t>(bytes));
  __builtin_memset(copy + bytes, 0, static_cast<size_t>(kBytes - bytes));
  return copy;
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

template <int kBits>
void pack_quant_x(const float* x, int64_t k, int64_t group, void* out) {
  using Form = QuantForm<kBits>;
  const int64_t units = k / kQuantUnit;
  auto* block = static_cast<QuantX*>(out);
  for (int64_t first = 0; first < units; first += kLanes, block++) {
    int16_t levels[kBlockColumns] = {};
    const int64_t count = smaller(kLanes, units - first);
    for (int64_t i = count; i < kLanes; i++) block->scale[i] = 0;
    round_x(x + first * kQuantUnit, count, levels, block->scale);
    block->first_group = unit_groups(first, count, group, block->group);
    for (int64_t i = 0; i < kLanes; i++) {
      int32_t sum = 0;
      if (kBits == 4) {
        for (int64_t c = 0; c < kQuantUnit; c++) sum += levels[i * kQuantUnit + c];
      }
      block->offset[i] = -8 * sum;
    }
    for (int64_t vector = 0; vector < Form::kVectors; vector++) {
      const int16_t* from = levels + vector * Form::kVectorColumns;
      int16_t* to = block->levels + vector * Form::kVectorColumns;
      for (int64_t word = 0; word < 2 * kLanes; word++) {
        typename LevelsOfWord<kBits>::Type some;
        __builtin_memcpy(&some, from + word * Form::kPlanes, sizeof(some));
#pragma GCC unroll 4
        for (int plane = 0; plane < Form::kPlanes; plane++) {
          to[plane * 2 * kLanes + word] = static_cast<int16_t>(some >> 16 * plane);
        }
      }
    }
  }
}

// ---- few rows ----

// sum[m] += the products of vector `at` of a block of w with M rows of x, `ldx` blocks apart.
template <int kBits, int M>
inline __attribute__((always_inline)) void vector_products(const QuantX* x, int64_t ldx, const uint8_t* q, int at,
                                                           Vi (&sum)[M]) {
  using Form = QuantForm<kBits>;
  const Vi packed = load_bits(q + at * kVectorBytes);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) sum[m] = zero_bits();
#pragma GCC unroll 4
  for (int i = 0; i < Form::kPlanes; i++) {
    const Vi w = plane<kBits>(packed, i);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int16_t* levels = x[m * ldx].levels + at * Form::kVectorColumns + i * 2 * kLanes;
      sum[m] = mac_i16(sum[m], load_bits(levels), w);
    }
  }
}

// As vector_products, of vectors `at` and at + 1 of int4, in groups of 4 lanes.
template <int M>
inline __attribute__((always_inline)) void quarter_products(QuantForm<4>, const QuantX* x, int64_t ldx,
                                                            const uint8_t* q, int at, Vi (&sum)[M]) {
  Vi next[M];
  vector_products<4, M>(x, ldx, q, at, sum);
  vector_products<4, M>(x, ldx, q, at + 1, next);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) sum[m] = fold_8(sum[m], next[m]);
}

// Of four vectors of int8.
template <int M>
inline __attribute__((always_inline)) void quarter_products(QuantForm<8>, const QuantX* x, int64_t ldx,
                                                            const uint8_t* q, int at, Vi (&sum)[M]) {
  Vi next[M], half[M];
  vector_products<8, M>(x, ldx, q, at, sum);
  vector_products<8, M>(x, ldx, q, at + 1, next);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) half[m] = fold_16(sum[m], next[m]);
  vector_products<8, M>(x, ldx, q, at + 2, sum);
  vector_products<8, M>(x, ldx, q, at + 3, next);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) sum[m] = fold_8(half[m], fold_16(sum[m], next[m]));
}

// Adds the terms of a block of one row of w, whose units have `scales`, to sum[m * stride]. The last quarters of a
// block may be missing.
template <int kBits, int M>
inline __attribute__((always_inline)) void block_terms(const QuantX* x, int64_t ldx, const uint8_t* q, Vf scales,
                                                       int64_t quarters, Vf* sum, int stride) {
  constexpr QuantForm<kBits> kForm;
  constexpr int kStep = kForm.kVectors / 4;
  Vi a[M], b[M] = {}, c[M] = {}, d[M] = {};
  quarter_products<M>(kForm, x, ldx, q, 0, a);
  if (quarters > 1) quarter_products<M>(kForm, x, ldx, q, kStep, b);
  if (quarters > 2) quarter_products<M>(kForm, x, ldx, q, 2 * kStep, c);
  if (quarters > 3) quarter_products<M>(kForm, x, ldx, q, 3 * kStep, d);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const QuantX& row = x[m * ldx];
    Vi total = totals_of_4(a[m], b[m], c[m], d[m]);
    if constexpr (kBits == 4) total = total + load_bits(row.offset);
    sum[m * stride] = fma(to_float(total), scales * load(row.scale), sum[m * stride]);
  }
}

// sums[m * ld_sums + n * stride] = x row m · w row n * stride; x: M rows of `blocks` blocks
template <int kBits, int M, int N>
void quant_rows_tile(const QuantX* x, int64_t blocks, const QuantRows& w, int64_t stride, float* sums,
                     int64_t ld_sums) {
  using Form = QuantForm<kBits>;
  const int64_t row_groups = w.k / w.group, q_stream = stride * Form::row_bytes(w), scale_stream = stride * row_groups;
  Vf sum[M * N];
#pragma GCC unroll 16
  for (int i = 0; i < M * N; i++) sum[i] = zero();
  const uint8_t* q = w.q;
  for (int64_t block = 0; block < blocks; block++, x++, q += Form::kBlockBytes) {
    const Vi group = load_bits(x->group);
    const float* from = w.scales + x->first_group;
    const int64_t groups = smaller(row_groups - x->first_group, kLanes);
    const int64_t units = smaller(w.k / kQuantUnit - block * kLanes, kLanes),
                  quarters = (4 * units + kLanes - 1) / kLanes;
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      uint8_t copy[Form::kBlockBytes];
      const uint8_t* row = q + n * q_stream;
#pragma GCC unroll 8
      for (int64_t line = 0; line < Form::kBlockBytes; line += 64) {
        __builtin_prefetch(row + line + kPrefetchBytes, 0, 2);
      }
      row = whole_block<kBits>(row, Form::row_bytes(w) - block * Form::kBlockBytes, copy);
      const Vf scales = spread(load_partial(from + n * scale_stream, groups), group);
      block_terms<kBits, M>(x, blocks, row, scales, quarters, sum + n, N);
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
