// The epilogue of products on the matrix unit: tiles of sums, yᵀ, are turned and finished piece by piece, between the
// products of the next block of tiles.
//
// A piece is small enough for out-of-order execution to carry it beside the products: done at once, the epilogue of a
// block takes a sixth of the time of a product of 257 rows with 1408 x 1408 weights, in pieces a tenth.
#pragma once

#include "kernels.h"
#include "linear_finish.h"
#include "transpose.h"

namespace qformer::cpu::QF_ISA {

// y[i * ld + j] = column i, row j of a tile of sums
inline void turn_tile(const float* sums, float* y, int64_t ld) {
  Vf tile[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) tile[i] = load(sums + 16 * i);
  transpose(tile);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) store(y + i * ld, tile[i]);
}

// A quarter of what one tile of rows needs: its two tiles of sums are turned, then its rows finished, eight at a time.
inline void finish_next(WaitingTiles& waiting) {
  if (waiting.next == waiting.count) return;
  const int64_t tile = waiting.next / 4, part = waiting.next % 4, row = tile * waiting.tile_rows;
  const int64_t rows = smaller(waiting.tile_rows, waiting.finish.m - row);
  waiting.next++;
  if (part < 2) {
    const int64_t at = (2 * tile + part) * kTileFloats;
    turn_tile(waiting.sums + at, waiting.turned + 16 * part, 32);
    if (waiting.up != nullptr) turn_tile(waiting.up + at, waiting.turned_up + 16 * part, 32);
    return;
  }
  const int64_t first = 8 * (part - 2);
  if (first >= rows) return;
  Finish finish = waiting.finish;
  finish.m = smaller(rows - first, 8);
  finish.sums = waiting.turned + 32 * first;
  finish.up = waiting.up != nullptr ? waiting.turned_up + 32 * first : nullptr;
  finish.ld_sums = finish.ld_up = 32;
  if (finish.residual != nullptr) finish.residual += (row + first) * finish.ldr;
  finish.y += (row + first) * finish.ldy;
  finish_rows(finish);
}

inline void finish_waiting(WaitingTiles& waiting) {
  while (waiting.next < waiting.count) finish_next(waiting);
}

// The sums of a block of `tiles` tiles of rows, from tile `first` on, now lie in job.waiting.
inline void put_waiting(const TileJob& job, int64_t first, int64_t tiles) {
  WaitingTiles& waiting = *job.waiting;
  const int64_t row = first * job.columns;
  waiting.finish = *job.finish;
  waiting.finish.m -= row;
  waiting.finish.y += row * waiting.finish.ldy;
  if (waiting.finish.residual != nullptr) waiting.finish.residual += row * waiting.finish.ldr;
  waiting.up = job.up != nullptr ? job.up + 2 * first * kTileFloats : nullptr;
  waiting.tile_rows = job.columns;
  waiting.next = 0;
  waiting.count = 4 * tiles;
}

}  // namespace qformer::cpu::QF_ISA
