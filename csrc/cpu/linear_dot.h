// The sums of every linear op, and the products of few rows.
//
// Canonical order of one output element: k is cut into blocks of kBlockGroups groups of 16 bytes (4 floats, or 4 pairs
// of bf16 for bf16 dot products). Lane j of four takes number j of each group of a block, from zero on; the lanes are
// added as (0 + 2) + (1 + 3), and the blocks' sums one after the other. Zeros fill up the last groups of k. Every
// kernel keeps exactly this order whatever its tiles, blocks or packing are, so an element's bits depend on its own row
// of x and of w only, and for f32 products not on the width of a vector either.
//
// A vector holds the four lanes of kColumns columns. What is loaded of w is groups of one row: kColumns rows are loaded
// and turned, a square of groups, and each group of x is repeated for all columns. x is packed, so that one pointer
// reads it: with one for each row, addresses spill.
#pragma once

#include "fetcher.h"
#include "kernels.h"
#include "simd.h"
#include "transpose.h"

namespace qformer::cpu::QF_ISA {

constexpr int kColumns = kLanes / 4;  // groups of a vector, and columns it has sums of
constexpr int64_t kBlockGroups = 96;  // a multiple of kColumns
constexpr int kMostVectors = 4;       // of columns, as add_groups takes them

// Rows of w that are read side by side. Up to kFewRows rows of x are as fast as memory with few streams, which read 1.2
// times as fast as many from DRAM; from a cache they wait for their multiply-adds, and many are 1.1 to 1.6 times as
// fast.
constexpr int kMostStreams = 8, kFewStreams = 4, kFewRows = 2;

// How far ahead of its use each stream of weights is fetched.
constexpr int64_t prefetch_bytes(int streams) { return streams > kFewStreams ? 1024 : 1536; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Kinds of products: how kStep elements of x become the kLanes numbers of a vector, how those of w are loaded, and one
// multiply-add. A number is 32 bits, a float or a pair of bf16; a group has kGroup elements.
struct DotF32 {
  using W = float;
  static constexpr int kStep = kLanes, kGroup = 4;
  static constexpr bool kTakesRows = kRegisters == 32;  // x is multiplied as it is
  static Vf take_x(const float* p) { return load(p); }
  static Vf take_x(const float* p, int64_t n) { return load_partial(p, n); }
  static Vf load_w(const W* p) { return load(p); }
  static Vf load_w(const W* p, int64_t n) { return load_partial(p, n); }
  static Vf mac(Vf sum, Vf x, Vf w) { return fma(x, w, sum); }
};

struct DotF16 : DotF32 {
  using W = uint16_t;
  static Vf load_w(const W* p) { return load_f16(p); }
  static Vf load_w(const W* p, int64_t n) { return load_f16_partial(p, n); }
};

struct DotBf16 : DotF32 {
  using W = uint16_t;
  static Vf load_w(const W* p) { return load_bf16(p); }
  static Vf load_w(const W* p, int64_t n) { return load_bf16_partial(p, n); }
};

// Both operands bf16, x rounded to it.
#if defined(QF_ISA_BF16_DOT)
// Each lane adds the products of a pair of neighbours (vdpbf16ps).
struct DotBf16Products {
  using W = uint16_t;
  static constexpr int kStep = 2 * kLanes, kGroup = 8;
  static constexpr bool kTakesRows = false;
  static Vf take_x(const float* p) { return pairs(load(p), load(p + kLanes)); }
  static Vf take_x(const float* p, int64_t n) {
    return pairs(load_partial(p, smaller(n, kLanes)), n > kLanes ? load_partial(p + kLanes, n - kLanes) : zero());
  }
  static Vf load_w(const W* p) { return {_mm512_loadu_ps(p)}; }
  static Vf load_w(const W* p, int64_t n) {
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p))};
  }
  static Vf mac(Vf sum, Vf x, Vf w) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(w.v))};
  }

 private:
  static Vf pairs(Vf low, Vf high) {
    return {_mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1))};
  }
};
#else
struct DotBf16Products : DotBf16 {
  static constexpr bool kTakesRows = false;
  static Vf take_x(const float* p) { return take_x(p, kLanes); }
  static Vf take_x(const float* p, int64_t n) {
    uint16_t rounded[kLanes];
    store_bf16(rounded, load_partial(p, n));
    return load_bf16(rounded);
  }
};
#endif

// Stops the compiler from folding the load into every multiply-add that uses it: load ports are the scarce unit here.
inline __attribute__((always_inline)) Vf in_register(Vf step) {
#if defined(__x86_64__)
  if constexpr (sizeof(Vf) >= 32) asm("" : "+v"(step.v));  // the scalar kernels have no register to hold it in
#endif
  return step;
}

// Packs `count` elements of k of some rows of x: [group][row][4], zeros up to a whole vector.
template <class Dot>
void pack_x_tile(const float* x, int64_t ldx, int64_t rows, int64_t count, float* out) {
  constexpr int64_t kBlock = kBlockGroups * Dot::kGroup;
  for (; count > 0; count -= kBlock, x += kBlock, out += kBlockGroups * rows * 4) {
    const int64_t block = smaller(count, kBlock);
    fetch_to_write(out, kLanes * rows, (block + Dot::kStep - 1) / Dot::kStep, kLanes * rows);
    for (int64_t row = 0; row < rows; row++) {
      const float* from = x + row * ldx;
      float* to = out + 4 * row;
      for (int64_t i = 0; i < block; i += Dot::kStep) {
        alignas(64) float numbers[kLanes];
        store(numbers, block - i >= Dot::kStep ? Dot::take_x(from + i) : Dot::take_x(from + i, block - i));
#pragma GCC unroll 4
        for (int g = 0; g < kColumns; g++, to += 4 * rows) __builtin_memcpy(to, numbers + 4 * g, 16);
      }
    }
  }
}

// The sums of kLanes columns over a block from those of vectors of columns: lane 4 * g + v is column g of vector v.
template <int V>
inline Vf add_lanes(const Vf* sum) {
  return add_groups(sum[0], V > 1 ? sum[1] : zero(), V > 2 ? sum[2] : zero(), V > 3 ? sum[3] : zero());
}

// Adds the products of M rows of x with V vectors of columns over kStep elements. load_w(g, v): the elements of row
// g of vector v; group_of_x(m, g): group g of row m, repeated.
template <class Dot, int M, int V, class LoadW, class GroupOfX>
inline __attribute__((always_inline)) void add_products(Vf (&sum)[M][V], LoadW load_w, GroupOfX group_of_x) {
  Vf w[V][kColumns];
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
#pragma GCC unroll 4
    for (int g = 0; g < kColumns; g++) w[v][g] = in_register(load_w(g, v));
    turn_groups(w[v]);
  }
#pragma GCC unroll 4
  for (int g = 0; g < kColumns; g++) {
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vf x = in_register(group_of_x(m, g));
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[m][v] = Dot::mac(sum[m][v], x, w[v][g]);
    }
  }
}

// sums[m * ld_sums + c * stride] = x row m · w row c * stride for V * kColumns columns c, w straight from its rows.
// x: as pack_x_tile packs it.
template <class Dot, int M, int V>
void dot_rows_tile(const float* x, const typename Dot::W* w, int64_t ldw, int64_t stride, int64_t k, float* sums,
                   int64_t ld_sums) {
  using W = typename Dot::W;
  constexpr int C = V * kColumns;
  constexpr int64_t kAhead = prefetch_bytes(C) / static_cast<int64_t>(sizeof(W));
  constexpr int64_t kBlock = kBlockGroups * Dot::kGroup;
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(W));
  const W* row[C];
#pragma GCC unroll 16
  for (int c = 0; c < C; c++) row[c] = w + c * stride * ldw;
  const auto group_of_x = [&](int m, int g) { return repeat_4(x + (g * M + m) * 4); };
  Vf total[M];
  for (int m = 0; m < M; m++) total[m] = zero();
  for (int64_t first = 0; first < k; first += kBlock) {
    const int64_t count = smaller(kBlock, k - first);
    Vf sum[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[m][v] = zero();
    }
    int64_t i = 0;
    for (; i + Dot::kStep <= count; i += Dot::kStep) {
      if (Dot::kStep >= kLine || i % kLine == 0) {
#pragma GCC unroll 16
        for (int c = 0; c < C; c++) __builtin_prefetch(row[c] + kAhead, 0, 3);
      }
      add_products<Dot, M, V>(
          sum, [&](int g, int v) { return Dot::load_w(row[g * V + v]); }, group_of_x);
#pragma GCC unroll 16
      for (int c = 0; c < C; c++) row[c] += Dot::kStep;
      x += kColumns * M * 4;
    }
    if (i < count) {
      add_products<Dot, M, V>(
          sum, [&](int g, int v) { return Dot::load_w(row[g * V + v], count - i); }, group_of_x);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vf block = add_lanes<V>(sum[m]);
      total[m] = first == 0 ? block : total[m] + block;
    }
  }
  for (int m = 0; m < M; m++) {
    float lanes[kLanes];
    store(lanes, total[m]);
    for (int g = 0; g < kColumns; g++) {
      for (int v = 0; v < V; v++) sums[m * ld_sums + (g * V + v) * stride] = lanes[4 * g + v];
    }
  }
}

// The vectors of columns that fit into registers beside what is turned of w and a vector of x, for at most kMostStreams
// streams of weights: twice as many read 10 % slower from memory.
template <int M>
constexpr int vectors_for_rows() {
  constexpr int kFitting = (kRegisters - 1) / (M + kColumns);
  constexpr int kMost = kMostStreams / kColumns < kMostVectors ? kMostStreams / kColumns : kMostVectors;
  return kFitting < 1 ? 1 : kFitting > kMost ? kMost : kFitting;
}

// The columns of a tile lie n / their number apart, so that the weights are read as that many streams, each running
// through its rows without a break. Neighbouring rows would be streams that start anew every row, where prefetchers
// lose their stride. What is left over is done again with neighbouring rows, fewer than kColumns of them by
// themselves.
template <class Dot, int M, int V>
void dot_rows_columns(const RowsJob& job) {
  constexpr int C = V * kColumns;
  const auto* w = static_cast<const typename Dot::W*>(job.w);
  const float* x = job.x;
  float* sums = job.sums;
  const int64_t ldw = job.ldw, n = job.n, k = job.k, ld_sums = job.ld_sums, stride = n / C;
  int64_t j = 0;
  for (; j < stride; j++) dot_rows_tile<Dot, M, V>(x, w + j * ldw, ldw, stride, k, sums + j, ld_sums);
  for (j = stride * C; j + kColumns <= n; j += kColumns) {
    dot_rows_tile<Dot, M, 1>(x, w + j * ldw, ldw, 1, k, sums + j, ld_sums);
  }
  // The last row of w over and over: ldw 0.
  for (; j < n; j++) {
    float same[M * kColumns];
    dot_rows_tile<Dot, M, 1>(x, w + j * ldw, 0, 1, k, same, kColumns);
    for (int m = 0; m < M; m++) sums[m * ld_sums + j] = same[m * kColumns];
  }
}

constexpr int kDotRows = 8;

template <class Dot, int M>
void dot_rows(const RowsJob& job) {
  constexpr int kMany = vectors_for_rows<M>(), kFew = kFewStreams / kColumns;
  if constexpr (M <= kFewRows && kFew < kMany) {
    if (job.from_memory) return dot_rows_columns<Dot, M, kFew>(job);
  }
  dot_rows_columns<Dot, M, kMany>(job);
}

template <class Dot>
void dot_rows_of(const RowsJob& job) {
  switch (job.m) {
#define QF_ROWS(M) \
  case M:          \
    return dot_rows<Dot, M>(job);
    QF_ROWS(1)
    QF_ROWS(2)
    QF_ROWS(3)
    QF_ROWS(4)
    QF_ROWS(5)
    QF_ROWS(6)
    QF_ROWS(7)
    QF_ROWS(8)
#undef QF_ROWS
  }
}

}  // namespace qformer::cpu::QF_ISA
