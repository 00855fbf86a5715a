// Products of rows with group-quantised weights (quant_layout.h) in integers.
//
// x is rounded to 16 bits with a scale for each unit of kQuantUnit columns, about a hundred times finer than bf16, or
// to 8 bits. The products of a unit are added up exactly, as integers; the sum times the scale of the weights' group
// times that of x is one term. Canonical order of an element: the terms of all units one after the other in f32, each
// with one multiply-add (which rounds twice in the fallback without vectors). Every way keeps it, so an element's bits
// depend on its own row of x and of w only. NaN and infinity make the term NaN.
//
// A lane is a column, and a step a quad: four columns of k, of which a number of x is repeated for all lanes. With byte
// products (AVX-512 VNNI) 16 bits of x are 256 * high + low, two signed bytes; without, pairs of 16-bit numbers are
// multiplied, in the order in which shifts and masks take a word of weights apart, whatever bits x has. Where there are
// products of pairs of bytes (AVX2), 16 bits hold those of 4-bit weights and 8 bits of x for half a unit.
//   packed x of M rows, each unit: [plane][M][quad][4 bytes], M scales, M offsets
// A plane has the high bytes, the low bytes or the only ones of x, or its columns 0 and 2 or 1 and 3 of each quad. An
// offset is what the sum of a unit lacks, since weights are stored plus quant_zero.
#pragma once

#include "kernels.h"
#include "linear_dot.h"
#include "simd_int16.h"

namespace qformer::cpu::QF_ISA {

constexpr int kUnitQuads = kQuantUnit / 4;
constexpr int kRowVectors = kQuantRows / kLanes;  // of a block of rows of w

// Whether x is packed as bytes.
#if defined(QF_BYTE_PRODUCTS)
template <int kBits, int kXBits>
constexpr bool kBytes = true;
#elif defined(QF_BYTE_PAIRS)
template <int kBits, int kXBits>
constexpr bool kBytes = kBits == 4 && kXBits == 8;
#else
template <int kBits, int kXBits>
constexpr bool kBytes = false;
#endif
template <int kBits, int kXBits>
constexpr int kPlanes = kBytes<kBits, kXBits> ? kXBits / 8 : 2;

// Floats that a unit of a row of x takes, packed.
template <int kBits, int kXBits>
constexpr int kUnitFloats = kPlanes<kBits, kXBits> * kUnitQuads + 2;

// Quads of a word of weights, and words of a unit.
template <int kBits>
constexpr int kWordQuads = 8 / kBits;
template <int kBits>
constexpr int kWords = unit_words(kBits);

inline Vi in_register(Vi v) { return as_bits(in_register(as_float(v))); }

// ---- x ----

constexpr float kSmallestUnit = 0x1p-110f;  // one below counts as zero, or the reciprocal of its scale would overflow

// Rounds a unit; the scale is NaN where a value is not finite.
template <int kXBits, class Level>
inline void round_unit(const float* x, Level* levels, float* scale, float* sum) {
  constexpr float kLargest = kXBits == 16 ? 127 * 256 + 127 : 127;
  Vf magnitude = zero();
#pragma GCC unroll 16
  for (int64_t i = 0; i < kQuantUnit; i += kLanes) magnitude = vmax(magnitude, vabs(load(x + i)));
  const float largest = reduce_max(magnitude);
  const Vf per_level = broadcast(largest >= kSmallestUnit ? kLargest / largest : 0);
  Vf total = zero();
#pragma GCC unroll 16
  for (int64_t i = 0; i < kQuantUnit; i += kLanes) {
    const Vf level = round_even(load(x + i) * per_level);
    total = total + level;
    if constexpr (sizeof(Level) == 2) {
      store_i16(levels + i, level);
    } else {
      store_i8(levels + i, level);
    }
  }
  const float whole = reduce_add(total);  // exact; NaN where a level is
  *scale = largest / kLargest + (whole - whole);
  *sum = whole == whole ? whole : 0;
}

// Packs a unit; its planes lie `stride` floats apart.
template <int kBits, int kXBits>
inline void pack_unit(const float* x, int64_t stride, float* out, float* scale, float* sum) {
  auto* bytes = reinterpret_cast<int8_t*>(out);
  if constexpr (kPlanes<kBits, kXBits> == 1) {
    round_unit<kXBits>(x, bytes, scale, sum);
  } else {
    alignas(64) int16_t levels[kQuantUnit];
    round_unit<kXBits>(x, levels, scale, sum);
#if defined(QF_BYTE_PRODUCTS)
    split_levels(levels, bytes, bytes + 4 * stride);
#else
    for (int quad = 0; quad < kUnitQuads; quad++) {
      const int16_t* of = levels + 4 * quad;
      const int16_t even[2] = {of[0], of[2]}, odd[2] = {of[1], of[3]};
      __builtin_memcpy(bytes + 4 * quad, even, 4);
      __builtin_memcpy(bytes + 4 * (stride + quad), odd, 4);
    }
#endif
  }
}

// Packs `count` columns, whole units, of some rows of x.
template <int kBits, int kXBits>
void pack_quant_x(const float* x, int64_t ldx, int64_t rows, int64_t count, float* out) {
  constexpr int64_t kPlaneFloats = kUnitFloats<kBits, kXBits> - 2;
  for (int64_t row = 0; row < rows; row++) {
    float* to = out;
    for (int64_t i = 0; i < count; i += kQuantUnit, to += kUnitFloats<kBits, kXBits> * rows) {
      float sum, *scales = to + kPlaneFloats * rows;
      pack_unit<kBits, kXBits>(x + row * ldx + i, kUnitQuads * rows, to + kUnitQuads * row, scales + row, &sum);
      const auto offset = -quant_zero(kBits) * static_cast<int32_t>(sum);
      __builtin_memcpy(scales + rows + row, &offset, 4);
    }
  }
}

// ---- sums of a unit ----

#if defined(QF_BYTE_PRODUCTS) || defined(QF_BYTE_PAIRS)
// A quad of M rows of x times V vectors of columns.
template <int M, int V>
inline __attribute__((always_inline)) void add_quad(const float* x, const Vi (&levels)[V], Vi (&sum)[M][V]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const Vi quad = in_register(broadcast_bits(x + m * kUnitQuads));
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[m][v] = mac_bytes(sum[m][v], levels[v], quad);
  }
}

// Planes of x times words [begin, end) of V vectors of columns, each with sums of its own: load_word(i, v) is word i of
// vector v.
template <int kBits, int M, int V, class LoadWord, class... Sums>
inline __attribute__((always_inline)) void add_planes(const float* x, int begin, int end, LoadWord load_word,
                                                      Sums (&... sums)[M][V]) {
  x += begin * kWordQuads<kBits>;
  for (int word = begin; word < end; word++) {
    Vi w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) w[v] = load_word(word, v);
#pragma GCC unroll 2
    for (int part = 0; part < kWordQuads<kBits>; part++, x++) {
      Vi levels[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) levels[v] = in_register(byte_part<kBits>(w[v], part));
      const float* plane = x - kUnitQuads * M;
      (add_quad(plane += kUnitQuads * M, levels, sums), ...);
    }
  }
}
#endif

template <int kBits, int kXBits, int M, int V, class LoadWord>
inline __attribute__((always_inline)) void unit_sums(const float* x, LoadWord load_word, Vi (&total)[M][V]) {
  const float* offsets = x + (kUnitFloats<kBits, kXBits> - 1) * M;
#if defined(QF_BYTE_PRODUCTS)
  // Both planes at once where registers hold the sums of both; else w is read twice.
  constexpr bool kAtOnce = 3 * M * V <= kRegisters - 4;
  Vi high[M][V], low[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const Vi offset = broadcast_bits(offsets + m);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      high[m][v] = zero_bits();
      low[m][v] = offset;
    }
  }
  if constexpr (kXBits == 8) {
    add_planes<kBits>(x, 0, kWords<kBits>, load_word, low);
  } else if constexpr (kAtOnce) {
    add_planes<kBits>(x, 0, kWords<kBits>, load_word, high, low);
  } else {
    add_planes<kBits>(x, 0, kWords<kBits>, load_word, high);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) total[m][v] = kXBits == 8 ? low[m][v] : times_256(high[m][v]) + low[m][v];
  }
  if constexpr (kXBits == 16 && !kAtOnce) add_planes<kBits>(x + kUnitQuads * M, 0, kWords<kBits>, load_word, total);
#else
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) total[m][v] = broadcast_bits(offsets + m);
  }
#if defined(QF_BYTE_PAIRS)
  if constexpr (kBytes<kBits, kXBits>) {
    static_assert(kUnitQuads / 2 * 2 * 15 * 127 < 1 << 15);
    for (int half = 0; half < 2; half++) {
      Vi pairs[M][V];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) pairs[m][v] = zero_bits();
      }
      add_planes<kBits>(x, half * kWords<kBits> / 2, (half + 1) * kWords<kBits> / 2, load_word, pairs);
      const Vi one = broadcast_i16(1);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) total[m][v] = mac_i16(total[m][v], pairs[m][v], one);
      }
    }
    return;
  }
#endif
#pragma GCC unroll 1  // or the compiler moves all products ahead of the sums, and spills them
  for (int word = 0; word < kWords<kBits>; word++) {
    Vi w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) w[v] = load_word(word, v);
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kWordQuads<kBits>; i++) {
      const int plane = i / kWordQuads<kBits>, part = i % kWordQuads<kBits>;
      const float* pairs = x + plane * M * kUnitQuads + word * kWordQuads<kBits> + part;
      Vi levels[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) levels[v] = in_register(word_part<kBits>(w[v], i));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const Vi pair = in_register(broadcast_bits(pairs + m * kUnitQuads));
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) total[m][v] = mac_i16(total[m][v], pair, levels[v]);
      }
    }
  }
#endif
}

// ---- rows ----

// How far ahead of their use weights and scales are fetched, in bytes.
template <int kBits>
constexpr int64_t kQuantAhead = kBits == 8 ? 1024 : 1536;
constexpr int64_t kScalesAhead = 256;

inline int64_t lanes_of(int64_t rows, int v) {
  const int64_t rest = rows - v * kLanes;
  return rest < 0 ? 0 : smaller(rest, kLanes);
}

// The sums of M packed rows with kBlocks blocks of w, `stride` blocks apart, or with one of fewer rows.
template <int kBits, int kXBits, int M, int kBlocks, bool kWhole>
void quant_rows_tile(const float* x, const uint8_t* w, const uint16_t* scales, int64_t stride, int64_t rows, int64_t k,
                     int64_t group, float* sums, int64_t ld_sums) {
  constexpr int V = kBlocks * kRowVectors;
  const int64_t group_units = group / kQuantUnit, height = kWhole ? kQuantRows : rows;
  const int64_t w_stride = stride * kQuantRows * k * kBits / 8, scale_stride = stride * kQuantRows * (k / group);
  Vf sum[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[m][v] = zero();
  }
  int64_t left = group_units;
  for (int64_t unit = 0; unit < k / kQuantUnit; unit++) {
    Vi total[M][V];
    unit_sums<kBits, kXBits>(
        x,
        [&](int word, int v) __attribute__((always_inline)) {
          const uint8_t* block = w + v / kRowVectors * w_stride + word * 4 * height;
          if (v % kRowVectors == 0) __builtin_prefetch(block + kQuantAhead<kBits>, 0, 3);
          const uint8_t* from = block + v % kRowVectors * 4 * kLanes;
          if constexpr (kWhole) return load_bits(from);
          return as_bits(load_partial(reinterpret_cast<const float*>(from), lanes_of(rows, v)));
        },
        total);
    const float* x_scales = x + (kUnitFloats<kBits, kXBits> - 2) * M;
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const uint16_t* block = scales + v / kRowVectors * scale_stride;
      if (v % kRowVectors == 0) __builtin_prefetch(block + kScalesAhead / 2, 0, 3);
      const uint16_t* from = block + v % kRowVectors * kLanes;
      const Vf scale = kWhole ? load_bf16(from) : load_bf16_partial(from, lanes_of(rows, v));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) sum[m][v] = fma(to_float(total[m][v]), scale * broadcast(x_scales[m]), sum[m][v]);
    }
    x += kUnitFloats<kBits, kXBits> * M;
    w += unit_words(kBits) * 4 * height;
    if (--left == 0) {
      left = group_units;
      scales += height;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      float* to = sums + m * ld_sums + v / kRowVectors * stride * kQuantRows + v % kRowVectors * kLanes;
      if constexpr (kWhole) {
        store(to, sum[m][v]);
      } else {
        store_partial(to, sum[m][v], lanes_of(rows, v));
      }
    }
  }
}

constexpr int kQuantTileRows = kRegisters == 32 ? 6 : 4;

// Blocks of rows of w that share a tile: as many vectors of columns as registers hold sums of.
template <int M>
constexpr int quant_blocks() {
  constexpr int kVectors = kRegisters == 32 ? (M <= 2 ? 4 : M <= 4 ? 3 : 2) : M == 1 ? 4 : 2;
  return kVectors < kRowVectors ? 1 : kVectors / kRowVectors;
}

// As many tiles of kBlocks blocks as there are from `first` on, then the rest in smaller ones. The blocks of a tile lie
// n / their number apart, as the columns in linear_dot.h.
template <int kBits, int kXBits, int M, int kBlocks, bool kWhole = true>
void quant_rows_from(const RowsJob& job, int64_t first) {
  const int64_t stride = kWhole ? (job.n / kQuantRows - first) / kBlocks : 1;
  for (int64_t block = first; block < first + stride; block++) {
    const int64_t row = block * kQuantRows;
    quant_rows_tile<kBits, kXBits, M, kBlocks, kWhole>(
        job.x, static_cast<const uint8_t*>(job.w) + row * job.k * kBits / 8, job.scales + row * (job.k / job.group),
        stride, job.n - row, job.k, job.group, job.sums + row, job.ld_sums);
  }
  first += stride * kBlocks;
  if constexpr (!kWhole) return;
  if constexpr (kBlocks > 1) return quant_rows_from<kBits, kXBits, M, kBlocks - 1>(job, first);
  if (job.n % kQuantRows != 0) quant_rows_from<kBits, kXBits, M, 1, false>(job, first);
}

template <int kBits, int kXBits, int M = 1>
void quant_rows_of(const RowsJob& job) {
  if constexpr (M < kQuantTileRows) {
    if (job.m > M) return quant_rows_of<kBits, kXBits, M + 1>(job);
  }
  quant_rows_from<kBits, kXBits, M, quant_blocks<M>()>(job, 0);
}

}  // namespace qformer::cpu::QF_ISA
