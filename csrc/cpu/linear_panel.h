// Products of many rows, in the canonical order of linear_dot.h.
//
// Both operands are packed a block of k at a time, so that a register tile of kPanelRows rows by kPanelColumns columns
// reads them one after the other: a vector of sums has four lanes of kColumns columns, and a step, a group of k, takes
// kPanelRows repeated groups of x and kMostVectors vectors of w for their product in multiply-adds. Nothing is added
// across lanes before the block ends.
//   x: [tile][group][rows of the tile][4]      w: [group][kMostVectors][kLanes]
// A packed block of w has 24 KiB with AVX-512 and stays in L1 while x streams by from L2.
#pragma once

#include "fetcher.h"
#include "kernels.h"
#include "linear_dot.h"
#if defined(QF_ISA_AVX2)
#include "linear_tile_avx2.h"
#endif

namespace qformer::cpu::QF_ISA {

constexpr int kPanelRows = kRegisters == 32 ? 6 : 3;
constexpr int kPanelColumns = kMostVectors * kColumns;
#if defined(QF_ISA_AVX2)
constexpr bool kPacksOnItsWay = false;  // its tile is all assembly
#else
constexpr bool kPacksOnItsWay = true;  // the first tile packs w
#endif
constexpr int64_t kPanelFloats = kBlockGroups * kMostVectors * kLanes;
// A narrow panel multiplies what is read of x less often. On a Zen 3 EPYC with 512 KiB of L2 products of 257 rows and
// 4,096 to 6,144 columns of x are 1.02 to 1.17 times as fast as with tasks of 64 columns, those of 2,048 0.95 times.
// Wider panels were not measured.
constexpr int64_t kFarColumns = kPanelColumns <= 8 ? 512 : 64;

// Groups of a block of `count` elements: whole vectors.
template <class Dot>
inline int64_t groups_of(int64_t count) {
  return (count + Dot::kStep - 1) / Dot::kStep * kColumns;
}

// Packs `Dot::kStep` elements of kPanelColumns rows of w from load_row(row): kColumns groups. Column c of the panel is
// group c / 4 of vector c % 4.
template <class LoadRow>
inline __attribute__((always_inline)) void pack_w_step(LoadRow load_row, float* out) {
#pragma GCC unroll 4
  for (int v = 0; v < kMostVectors; v++, out += kLanes) {
    Vf groups[kColumns];
#pragma GCC unroll 4
    for (int g = 0; g < kColumns; g++) groups[g] = in_register(load_row(4 * g + v));
    turn_groups(groups);
#pragma GCC unroll 4
    for (int g = 0; g < kColumns; g++) store(out + g * kMostVectors * kLanes, groups[g]);
  }
}

// The rows of w behind a panel, `count` elements of each, and where they are packed.
template <class W>
struct PanelSource {
  const W* w;
  int64_t ldw, columns, count;
  float* out;
};

// Packs the elements from i on, with zeros for what is not there.
template <class Dot>
inline void pack_ragged_step(const PanelSource<typename Dot::W>& from, int64_t i, float* out) {
  const int64_t rest = smaller(from.count - i, Dot::kStep);
  pack_w_step([&](int row) { return row < from.columns ? Dot::load_w(from.w + row * from.ldw + i, rest) : zero(); },
              out);
}

template <class Dot>
void pack_panel(const PanelSource<typename Dot::W>& from) {
  float* out = from.out;
  int64_t i = 0;
  if (from.columns == kPanelColumns) {
    for (; i + Dot::kStep <= from.count; i += Dot::kStep, out += kColumns * kMostVectors * kLanes) {
      pack_w_step([&](int row) { return Dot::load_w(from.w + row * from.ldw + i); }, out);
    }
  }
  for (; i < from.count; i += Dot::kStep, out += kColumns * kMostVectors * kLanes) pack_ragged_step<Dot>(from, i, out);
}

// Adds a step of M x N products; the shorter side waits in registers, the longer passes through one.
template <class Dot, int M, int N, class LoadX, class LoadW>
inline __attribute__((always_inline)) void dot_step(Vf (&sum)[M][N], LoadX load_x, LoadW load_w) {
  if constexpr (N <= M) {
    Vf w[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) w[n] = in_register(load_w(n));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vf x = in_register(load_x(m));
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) sum[m][n] = Dot::mac(sum[m][n], x, w[n]);
    }
  } else {
    Vf x[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) x[m] = in_register(load_x(m));
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      const Vf w = in_register(load_w(n));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) sum[m][n] = Dot::mac(sum[m][n], x[m], w);
    }
  }
}

// The sums of M rows over a block, added to those of the blocks before unless it is the first. before(s) prepares w
// for groups [s, s + kColumns).
template <class Dot, int M, bool kRows, class Before>
inline __attribute__((always_inline)) void multiply_tile(const float* x, int64_t ldx, const float* w, int64_t groups,
                                                         bool first, float* sums, int64_t ld_sums, Before before) {
  Vf sum[M][kMostVectors];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
    for (int v = 0; v < kMostVectors; v++) sum[m][v] = zero();
  }
  for (int64_t s = 0; s < groups; s += kColumns) {
    before(s);
    for (int g = 0; g < kColumns; g++) {
      dot_step<Dot, M, kMostVectors>(
          sum, [&](int m) { return repeat_4(x + (kRows ? m * ldx : 4 * m)); },
          [&](int v) { return load(w + v * kLanes); });
      x += kRows ? 4 : 4 * M;
      w += kMostVectors * kLanes;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++, sums += ld_sums) {
    const Vf block = add_lanes<kMostVectors>(sum[m]);
    store(sums, first ? block : load(sums) + block);
  }
}

template <class Dot, int M, bool kRows>
void panel_tile(const float* x, int64_t ldx, const float* w, int64_t groups, bool first, float* sums, int64_t ld_sums,
                SpreadFetcher& fetcher) {
#if defined(QF_ISA_AVX2)
  static_assert(!kRows);
  if constexpr (M == kPanelRows) return panel_tile_avx2(x, w, groups, first, sums, ld_sums, fetcher);
#endif
  Fetcher all = fetcher.all;
  const int64_t lines = fetcher.lines;
  multiply_tile<Dot, M, kRows>(x, ldx, w, groups, first, sums, ld_sums, [&](int64_t) { all.fetch(lines); });
  fetcher.all = all;
}

// The same of the first tile, which packs w on its way: shuffles and stores take other units than multiply-adds.
template <class Dot, int M, bool kRows>
void packing_tile(const float* x, int64_t ldx, const PanelSource<typename Dot::W>& from, bool first, float* sums,
                  int64_t ld_sums) {
  const int64_t whole = from.columns == kPanelColumns ? from.count / Dot::kStep * Dot::kStep : 0;
  multiply_tile<Dot, M, kRows>(
      x, ldx, from.out, groups_of<Dot>(from.count), first, sums,
      ld_sums, [&](int64_t s) __attribute__((always_inline)) {
        const int64_t i = s * Dot::kGroup;
        float* out = from.out + s * kMostVectors * kLanes;
        if (i < whole) {
          pack_w_step([&](int row) { return Dot::load_w(from.w + row * from.ldw + i); }, out);
        } else {
          pack_ragged_step<Dot>(from, i, out);
        }
      });
}

using PanelTile = void (*)(const float* x, int64_t ldx, const float* w, int64_t groups, bool first, float* sums,
                           int64_t ld_sums, SpreadFetcher& fetcher);

template <class Dot, bool kRows>
void multiply_tiles(const PanelJob& job) {
  using W = typename Dot::W;
  static_assert(kPanelRows <= 6);
  constexpr auto fitting = [](int rows) { return rows < kPanelRows ? rows : kPanelRows; };
  static constexpr PanelTile kTiles[] = {panel_tile<Dot, 1, kRows>,          panel_tile<Dot, 2, kRows>,
                                         panel_tile<Dot, 3, kRows>,          panel_tile<Dot, fitting(4), kRows>,
                                         panel_tile<Dot, fitting(5), kRows>, panel_tile<Dot, fitting(6), kRows>};
  const int64_t tiles = (job.rows + kPanelRows - 1) / kPanelRows, groups = groups_of<Dot>(job.count);
  const PanelSource<W> from{static_cast<const W*>(job.w), job.ldw, job.columns, job.count, job.packed_w};
  SpreadFetcher fetcher{Fetcher(job.ahead), 0};
  const int64_t times = groups / kColumns * (tiles > 1 ? tiles - 1 : 1);
  fetcher.lines = (fetcher.all.lines() + times - 1) / times;
  const float* x = job.x;
  float* sums = job.sums;
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t rows = smaller(kPanelRows, job.rows - tile * kPanelRows);
    if (job.y != nullptr) fetch_to_write(job.y + (sums - job.sums) / job.ld_sums * job.ldy, job.ldy, rows, job.columns);
    if (kPacksOnItsWay && tile == 0 && rows == kPanelRows) {
      packing_tile<Dot, kPanelRows, kRows>(x, job.ldx, from, job.first, sums, job.ld_sums);
    } else {
      if (tile == 0) pack_panel<Dot>(from);
      kTiles[rows - 1](x, job.ldx, job.packed_w, groups, job.first, sums, job.ld_sums, fetcher);
    }
    x += rows * (kRows ? job.ldx : groups * 4);
    sums += rows * job.ld_sums;
  }
}

template <class Dot>
void multiply_panel(const PanelJob& job) {
  if constexpr (Dot::kTakesRows) {
    if (job.ldx != 0) return multiply_tiles<Dot, true>(job);
  }
  multiply_tiles<Dot, false>(job);
}

}  // namespace qformer::cpu::QF_ISA
