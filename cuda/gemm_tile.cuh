// The shapes of the tensor-core GEMM: block tile, k-step, warps, and the swizzle of its shared-memory tiles.
//
// Tiles of x and w lie as rows of kColumns 16-bit elements (64 or 128 bytes), cut in 16-byte chunks. A chunk is stored
// at position chunk ^ swizzle(row), so that both the 16-byte copies in and the eight rows that ldmatrix reads at once
// fall on all 32 banks.
#pragma once

#include "prims/shared.h"

namespace qformer::cuda {

inline constexpr int kCopyElements = 8;  // 16-bit ones, a 16-byte chunk
inline constexpr int kWarpSize = 32;
inline constexpr int kSplitAlign = 64;  // k_chunk is a multiple of this, hence of every tile's k-step

template <int kBlockRows, int kBlockColumns, int kStepColumns, int kWarpsM, int kWarpsN>
struct GemmTile {
  static constexpr int kRows = kBlockRows;        // of x
  static constexpr int kWeights = kBlockColumns;  // rows of w
  static constexpr int kStep = kStepColumns;      // columns of k per stage
  static constexpr int kWarpCountN = kWarpsN;
  static constexpr int kWarps = kWarpsM * kWarpsN;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kWarpRows = kRows / kWarpsM;
  static constexpr int kWarpWeights = kWeights / kWarpsN;
  static constexpr int kMmaM = kWarpRows / 16;  // mma tiles of a warp
  static constexpr int kMmaN = kWarpWeights / 8;
  static constexpr int kAccumulators = kMmaM * kMmaN * 4;  // per thread
  static constexpr int kChunks = kStep / kCopyElements;    // of a row
  static_assert(kStep == 32 || kStep == 64, "the swizzle is made for rows of 64 and 128 bytes");
  static_assert(kWarpWeights % 32 == 0, "the epilogue works on 32 columns at a time");

  QF_HOST_DEVICE static int swizzle(int row) { return kStep == 64 ? row & 7 : (row >> 1) & 3; }
  // Where chunk `chunk` of a row begins, in elements.
  QF_HOST_DEVICE static int offset(int row, int chunk) { return row * kStep + (chunk ^ swizzle(row)) * kCopyElements; }

  static constexpr int kStageElements = (kRows + kWeights) * kStep;
};

using LargeTile = GemmTile<128, 256, 32, 2, 4>;
using MediumTile = GemmTile<128, 128, 32, 2, 2>;
using SerialTile = GemmTile<128, 128, 32, 2, 4>;  // registers for a second set of sums
using TallTile = GemmTile<128, 64, 64, 2, 2>;
using SmallTile = GemmTile<64, 64, 64, 2, 2>;

// Words of shared memory behind the ring: the block's first row and column, and whether it came last of its chunks.
inline constexpr int kRowWord = 0, kColumnWord = 1, kLastWord = 2, kSharedWords = 3;

// Bytes of dynamic shared memory of a block.
template <class Tile>
constexpr size_t gemm_shared_bytes(int stages) {
  return shared_bytes<uint16_t>(static_cast<size_t>(stages) * Tile::kStageElements) +
         shared_bytes<int32_t>(kSharedWords);
}

}  // namespace qformer::cuda
