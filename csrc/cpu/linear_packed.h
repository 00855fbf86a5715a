// Products of medium m: a block of x is packed once, weight rows are packed (and widened) a panel at a time into L1,
// and a register tile of kTileM x kTileN accumulators runs over both. Packing copies whole steps, it never transposes:
//   x: [k panel][tile][steps of the panel][kTileM][kLanes]      w: [steps of the panel][kTileN][kLanes]
// A k panel has at most kPanelSteps steps, so that a panel of w (24 KiB with AVX-512, 8 KiB with AVX2) stays in L1
// while tiles of x stream by from L2. Between panels the accumulators wait in memory, lanes and all, so blocking over k
// does not change an element's bits.
#pragma once

#include "linear_dot.h"

namespace qformer::cpu::QF_ISA {

constexpr int kTileM = kRegisters == 32 ? 4 : 3;
constexpr int kTileN = kRegisters == 32 ? 6 : 4;
constexpr int kTile = kTileM * kTileN;
constexpr int64_t kPanelSteps = 64;
constexpr int64_t kPanelAlign = 8;  // a panel begins where a block of quantised columns does, whatever the lanes
constexpr int64_t kPanelBytes = kPanelSteps * kTileN * kLanes * static_cast<int64_t>(sizeof(float));

// The division of k into panels: all but the last have `steps` steps.
struct Panels {
  int64_t total, steps;
};

template <class Dot>
inline Panels panels_of(int64_t k) {
  const int64_t total = (k + Dot::kStep - 1) / Dot::kStep;
  const int64_t count = (total + kPanelSteps - 1) / kPanelSteps;
  const int64_t even = (total + count - 1) / count;
  return {total, (even + kPanelAlign - 1) / kPanelAlign * kPanelAlign};
}

// Copies steps [first, last) of `valid` rows and zeros for the rest of `Rows`. `load(row, i)` and `load(row, i, n)`
// read w or x.
template <class Dot, int Rows, class Load>
inline void pack_steps(int64_t valid, int64_t first, int64_t last, int64_t k, float* out, Load load) {
  for (int64_t s = first; s < last; s++) {
    const int64_t i = s * Dot::kStep;
    for (int row = 0; row < Rows; row++, out += kLanes) {
      store(out, row >= valid ? zero() : k - i >= Dot::kStep ? load(row, i, Dot::kStep) : load(row, i, k - i));
    }
  }
}

// Packs tile `tile` of `tiles`: x has `rows` <= kTileM rows.
template <class Dot>
void pack_x_tile(const typename Dot::X* x, int64_t ldx, int64_t rows, int64_t k, int64_t tile, int64_t tiles,
                 float* out) {
  const Panels panels = panels_of<Dot>(k);
  for (int64_t first = 0; first < panels.total; first += panels.steps) {
    const int64_t last = smaller(first + panels.steps, panels.total);
    const int64_t at = (first * tiles + (last - first) * tile) * kTileM * kLanes;
    pack_steps<Dot, kTileM>(rows, first, last, k, out + at, [&](int row, int64_t i, int64_t n) {
      return n == Dot::kStep ? Dot::load_x(x + row * ldx + i) : Dot::load_x(x + row * ldx + i, n);
    });
  }
}

// How far ahead of its use packed x is fetched from L2 into L1, in steps. A whole tile ahead would push w out of L1.
constexpr int64_t kAheadSteps = 8;

// One register tile over one k panel; accumulators start from `waiting` unless `fresh`.
template <class Dot>
inline void packed_tile(const float* x, const float* w, int64_t steps, bool fresh, bool finished, float* waiting,
                        float* sums, int64_t ld_sums) {
  Vf sum[kTile];
#pragma GCC unroll 32
  for (int i = 0; i < kTile; i++) sum[i] = fresh ? zero() : load(waiting + i * kLanes);
  for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 4
    for (int m = 0; m < kTileM; m++) {
      __builtin_prefetch(x + (kAheadSteps * kTileM + m) * kLanes, 0, 3);
    }
    dot_step<Dot, kTileM, kTileN>(
        sum, [&](int m) { return load(x + m * kLanes); }, [&](int n) { return load(w + n * kLanes); });
    x += kTileM * kLanes;
    w += kTileN * kLanes;
  }
  if (finished) return reduce_tile<kTileM, kTileN>(sum, sums, ld_sums);
#pragma GCC unroll 32
  for (int i = 0; i < kTile; i++) store(waiting + i * kLanes, sum[i]);
}

// Runs all packed tiles of x over the k panels of one tile of w, which pack(first, last) writes to `panel`, steps
// [first, last) of it at a time; writes kTileN columns of kTileM * tiles rows. waiting: kTile vectors per tile.
template <class Dot, class Pack>
inline void run_panels(const float* packed_x, int64_t tiles, int64_t k, const float* panel, Pack pack, float* waiting,
                       float* sums, int64_t ld_sums) {
  const Panels panels = panels_of<Dot>(k);
  for (int64_t first = 0; first < panels.total; first += panels.steps) {
    const int64_t last = smaller(first + panels.steps, panels.total);
    const int64_t steps = last - first;
    pack(first, last);
    const float* x = packed_x + first * tiles * kTileM * kLanes;
    for (int64_t tile = 0; tile < tiles; tile++) {
      packed_tile<Dot>(x, panel, steps, first == 0, last == panels.total, waiting + tile * kTile * kLanes,
                       sums + tile * kTileM * ld_sums, ld_sums);
      x += steps * kTileM * kLanes;
    }
  }
}

// sums[m * ld_sums + j] for all packed rows m and `columns` <= kTileN weight rows. packed_w: kPanelBytes.
template <class Dot>
void dot_panel(const float* packed_x, int64_t tiles, const typename Dot::W* w, int64_t ldw, int64_t columns, int64_t k,
               float* panel, float* waiting, float* sums, int64_t ld_sums) {
  const auto pack = [&](int64_t first, int64_t last) {
    pack_steps<Dot, kTileN>(columns, first, last, k, panel, [&](int row, int64_t i, int64_t n) {
      return n == Dot::kStep ? Dot::load_w(w + row * ldw + i) : Dot::load_w(w + row * ldw + i, n);
    });
  };
  run_panels<Dot>(packed_x, tiles, k, panel, pack, waiting, sums, ld_sums);
}

}  // namespace qformer::cpu::QF_ISA
