// Products of many rows with quantised weights by outer products.
//
// Lanes of a sum are units of k there (quant_layout.h). They are walked one by one: first all steps of one lane, then
// those of the next. A register tile of some rows of x by two vectors of columns takes one number of each row and two
// vectors of w per step, so that nothing is reduced across lanes. The sums of the lanes meet in the order of
// reduce_add's tree: lanes are walked in bit-reversed order, which makes any two that meet neighbours, as the carries
// of a binary counter are, and log2(L) levels of sums wait.
//   x: [lane][tile][step][rows of the tile]      w: [lane][step][kOuterColumns], lanes `lane_stride` apart
// Traffic per block of rows: w read, turned and written once, read from L2 once; x read from L2 once per panel.
#pragma once

#include "fetcher.h"
#include "kernels.h"
#include "linear_dot.h"
#include "linear_finish.h"
#include "transpose.h"

namespace qformer::cpu::QF_ISA {

constexpr int kOuterColumns = 2 * kLanes;
constexpr int64_t kChunkUnits = 128;     // of w in L1 at once: 16 KiB with AVX-512
constexpr int64_t kNextTileBytes = 768;  // of x, fetched before its tile

constexpr int levels_of(int lanes) { return lanes == 1 ? 0 : 1 + levels_of(lanes / 2); }
constexpr int kLevels = levels_of(kLanes);

// The lane at place `place` of the walk.
constexpr int lane_at(int place) {
  int lane = 0;
  for (int bit = 0; bit < kLevels; bit++) lane |= (place >> bit & 1) << (kLevels - 1 - bit);
  return lane;
}

// One step of `rows` <= kLanes rows, turned; zeros for the rest. load(row) gives a row's step.
template <class Load>
inline void turn_step(int64_t rows, Load load, Vf (&tile)[kLanes]) {
  if (rows == kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) tile[i] = load(i);
  } else {
    for (int i = 0; i < kLanes; i++) tile[i] = i < rows ? load(i) : zero();
  }
  transpose(tile);
}

// The sums of a register tile over a run of steps: rows of kOuterColumns.
struct TileSums {
  float* at;
  bool fresh;            // start from zero, else from `at`
  const float* waiting;  // the tile's place in the first level
  int64_t level_stride;
  int merges;  // levels that are added to the sums before they are stored
};

template <int M>
inline __attribute__((always_inline)) void load_sums(const TileSums& sums, Vf (&sum)[M][2]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    sum[m][0] = sums.fresh ? zero() : load(sums.at + m * kOuterColumns);
    sum[m][1] = sums.fresh ? zero() : load(sums.at + m * kOuterColumns + kLanes);
  }
}

// Merges what waits, and stores.
template <int M>
inline __attribute__((always_inline)) void store_sums(const TileSums& sums, Vf (&sum)[M][2]) {
  for (int level = 0; level < sums.merges; level++) {
    const float* waiting = sums.waiting + level * sums.level_stride;
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      sum[m][0] = load(waiting + m * kOuterColumns) + sum[m][0];
      sum[m][1] = load(waiting + m * kOuterColumns + kLanes) + sum[m][1];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    store(sums.at + m * kOuterColumns, sum[m][0]);
    store(sums.at + m * kOuterColumns + kLanes, sum[m][1]);
  }
}

// A kind of products has the rows of its widest tile, kRows, the units of a step for one row of x and of w, kXUnits and
// kWUnits, and its tiles, Tile<M>. The table has them by their number of rows, from 1 on.
using RunTile = void (*)(const float* x, const float* w, int64_t steps, const TileSums& sums);
template <class Kind>
struct TileTable {
  RunTile of_rows[Kind::kRows];
};

template <class Kind, int M = Kind::kRows>
constexpr TileTable<Kind> tile_table(TileTable<Kind> table = {}) {
  if constexpr (M == 0) {
    return table;
  } else {
    table.of_rows[M - 1] = Kind::template Tile<M>::run;
    return tile_table<Kind, M - 1>(table);
  }
}

// The rows of a block of y from `row` on.
inline Finish finish_of_tile(const Finish& block, int64_t row, int64_t rows) {
  Finish tile = block;
  tile.ld_sums = kOuterColumns;
  if (tile.up != nullptr) tile.up += row * tile.ld_up;
  if (tile.residual != nullptr) tile.residual += row * tile.ldr;
  tile.y += row * tile.ldy;
  tile.m = rows;
  return tile;
}

// Fetches the beginning of what the next tile reads of x, which does not follow what this one reads where lanes are cut
// into chunks.
inline void fetch_next_tile(const char* next) {
  for (int64_t at = 0; at < kNextTileBytes; at += 64) __builtin_prefetch(next + at, 0, 2);
}

template <class Kind>
void outer_products(const OuterJob& job) {
  static constexpr TileTable<Kind> kTiles = tile_table<Kind>();
  constexpr int64_t kLargestChunk = kChunkUnits / Kind::kWUnits;
  const int64_t tiles = (job.rows + Kind::kRows - 1) / Kind::kRows;
  const int64_t short_rows = job.rows / tiles, tall = job.rows % tiles;
  const int64_t chunks = (job.steps + kLargestChunk - 1) / kLargestChunk;
  const int64_t chunk = (job.steps + chunks - 1) / chunks;
  const int64_t level_stride = job.rows * kOuterColumns;
  Fetcher fetcher{job.ahead};
  const int64_t runs = kLanes * chunks * tiles, lines = (fetcher.lines() + runs - 1) / runs;
  for (int place = 0; place < kLanes; place++) {
    // The carries of a counter that goes from `place` to the next; after the last place they reach the top.
    const int merges = __builtin_ctz(~static_cast<unsigned>(place));
    float* level = job.waiting + merges * level_stride;
    const int64_t place_steps = job.steps - (lane_at(place) < job.last_lanes ? 0 : 1);
    int64_t first = 0;
    do {
      const int64_t steps = smaller(chunk, place_steps - first);
      const bool last = first + steps == place_steps;
      const float* w = job.w + place * job.lane_stride + first * Kind::kWUnits * kOuterColumns;
      for (int64_t tile = 0, row = 0; tile < tiles; tile++) {
        const int64_t rows = short_rows + (tile < tall);
        float* at = level + row * kOuterColumns;
        const bool finished = last && merges == kLevels;
        Finish finish;
        if (finished) {
          finish = finish_of_tile(job.finish, row, rows);
          finish.sums = at;
          fetch_to_write(finish.y, finish.ldy, finish.m, finish.n);
        }
        fetcher.fetch(lines);
        if (chunks > 1 && tile + 1 < tiles) {
          const int64_t next_rows = short_rows + (tile + 1 < tall);
          fetch_next_tile(reinterpret_cast<const char*>(
              job.x + ((place * job.rows + row + rows) * job.steps + first * next_rows) * Kind::kXUnits));
        }
        kTiles.of_rows[rows - 1](job.x + ((place * job.rows + row) * job.steps + first * rows) * Kind::kXUnits, w,
                                 steps,
                                 {at, first == 0, job.waiting + row * kOuterColumns, level_stride, last ? merges : 0});
        if (finished) finish_rows(finish);
        row += rows;
      }
      first += chunk;
    } while (first < place_steps);
  }
}

}  // namespace qformer::cpu::QF_ISA
