// The tensor-core GEMM of sm_75 and later: one block per tile of y and, where chunks run apart, per k-chunk (grid.y).
//
// Traffic per block and k-step: one tile of x and one of w through L2. Blocks go through y in groups of 8 row tiles, so
// that a wave of blocks shares its weights and its rows in L2.
//
// Registers (sm_75 to sm_120, no spills) and shared memory of a stage; 3 or 4 stages, as the device allows:
//   128 × 256 × 32: 255, 24 KB      128 × 128 × 32: 255, 16 KB (serial chunks: 222)
//   128 ×  64 × 64: 178, 24 KB       64 ×  64 × 64: 126, 16 KB (unaligned: 186)
#pragma once

#include "gemm_epilogue.cuh"
#include "gemm_split.cuh"

namespace qformer::cuda {

inline constexpr int kRasterRows = 8;  // row tiles of a raster group

struct TilePosition {
  int row, column;  // in tiles
};

QF_DEVICE TilePosition raster(int block, int tiles_m, int tiles_n) {
  const int group_blocks = kRasterRows * tiles_n;
  const int first_row = block / group_blocks * kRasterRows;
  const int rows = min(tiles_m - first_row, kRasterRows);
  const int in_group = block % group_blocks;
  return {first_row + in_group % rows, in_group / rows};
}

template <class T, class Tile, bool kGated, bool kAligned, bool kSerial>
QF_KERNEL void QF_LAUNCH_BOUNDS(Tile::kThreads, Tile::kThreads == 128 && !kSerial ? 2 : 1) gemm_kernel(GemmArgs args) {
  SharedMemory shared;
  const Shared<T> ring = shared.take<T>(args.stages * Tile::kStageElements);
  const Shared<int32_t> words = shared.take<int32_t>(kSharedWords);

  const int chunks = static_cast<int>(gridDim.y);
  Accumulators<Tile> sums;
  {
    const TilePosition position = raster(static_cast<int>(blockIdx.x), args.tiles_m, args.tiles_n);
    const int row = position.row * Tile::kRows;
    const int column = position.column * (kGated ? Tile::kWeights / 2 : Tile::kWeights);
    // Kept here, not in registers, which the main loop wants all.
    if (threadIdx.x == 0) {
      words.store(kRowWord, row);
      words.store(kColumnWord, column);
    }
    const int k_begin = chunks > 1 ? static_cast<int>(blockIdx.y) * args.k_chunk : 0;
    const int k_end = chunks > 1 ? min(k_begin + args.k_chunk, args.k) : args.k;
    const TileLoader<T, Tile, kGated, kAligned> loader(args, row, column);
    run_main_loop<T, Tile, kGated, kSerial>(args, loader, k_begin, k_end, ring, sums);
  }
  // Gated products are never cut, and the tiles with 128 sums a thread have no registers left to add chunks up with.
  if constexpr (!kGated && Tile::kAccumulators <= 64) {
    if (chunks > 1 && !reduce_chunks<Tile>(args, chunks, sums, words + kLastWord)) return;
  }
  // The ring is free: run_main_loop ended with a barrier.
  write_tile<T, Tile, kGated>(args, words.load(kRowWord), words.load(kColumnWord), sums, ring.template as<float>());
}

}  // namespace qformer::cuda
