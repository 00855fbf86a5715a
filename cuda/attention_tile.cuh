// Tiles of q, k and v in shared memory and the fragments that mma reads from them.
//
// A tile holds rows of kHeadDim 16-bit elements in chunks of 16 bytes, dense. ldmatrix reads one chunk column of 8
// consecutive rows, which is free of bank conflicts when those chunks lie in 8 different groups of banks. With 88
// columns (11 chunks, an odd number) they do. Where the chunks of a row divide by 2, 4 or 8, rows repeat their groups
// that often, and the chunk number is xored with the number of the repetition: 64, 128: c ^ r % 8; 32, 96: c ^ r / 2 %
// 4; 80: c ^ r / 4 % 2. Whole chunks stay within an aligned group of 8, so filling a tile is free of conflicts as well.
// Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8".
#pragma once

#include "prims/copy_async.h"
#include "prims/cuda.h"
#include "prims/global.h"
#include "prims/math.h"
#include "prims/mma.h"
#include "prims/shared.h"

namespace qformer::cuda {

template <int kHeadDim>
struct TileShape {
  static_assert(kHeadDim % 8 == 0, "rows are made of 16-byte chunks");
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kRepeats = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : kChunks % 2 == 0 ? 2 : 1;
  static constexpr int kPitch = kHeadDim;             // elements
  static constexpr int kSteps16 = kHeadDim / 16;      // k16 steps of q·k
  static constexpr bool kStep8 = kHeadDim % 16 != 0;  // one k8 step after them
  static constexpr int kTiles8 = kHeadDim / 8;        // n8 tiles of p·v
};

// Element offset of chunk `chunk` of row `row`.
template <int kHeadDim>
QF_DEVICE int32_t tile_offset(int32_t row, int32_t chunk) {
  constexpr uint32_t kRepeats = TileShape<kHeadDim>::kRepeats;
  const uint32_t repeat = static_cast<uint32_t>(row) / (8 / kRepeats) % kRepeats;
  return row * kHeadDim + (chunk ^ static_cast<int32_t>(repeat)) * 8;
}

// The q fragments of one m16 tile: all k steps of 16 rows.
template <int kHeadDim>
struct QueryFragments {
  uint32_t k16[TileShape<kHeadDim>::kSteps16][4];
  uint32_t k8[TileShape<kHeadDim>::kStep8 ? 2 : 1];
};

template <class T, int kHeadDim>
QF_DEVICE void load_query_fragments(Shared<T> tile, int32_t first_row, QueryFragments<kHeadDim>& q) {
  using Shape = TileShape<kHeadDim>;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t row = first_row + lane % 16;
#pragma unroll
  for (int step = 0; step < Shape::kSteps16; ++step) {
    ldmatrix_x4(q.k16[step], tile + tile_offset<kHeadDim>(row, 2 * step + lane / 16));
  }
  if constexpr (Shape::kStep8) {
    ldmatrix_x2(q.k8, tile + tile_offset<kHeadDim>(row, 2 * Shape::kSteps16));
  }
}

// s[2 pair .. 2 pair + 1] of one key block are the scores of 16 keys; s must be zero before.
// kAll: all 64 keys; else only the first `pairs` groups of 16.
template <bool kAll, class T, int kHeadDim>
QF_DEVICE void score_block(Shared<T> keys, const QueryFragments<kHeadDim>& q, int32_t pairs, float (&s)[8][4]) {
  using Shape = TileShape<kHeadDim>;
  const int32_t lane = pinned(static_cast<int32_t>(threadIdx.x) % 32);
  const int32_t row = lane / 16 * 8 + lane % 8, chunk = lane / 8 % 2;
#pragma unroll
  for (int step = 0; step < Shape::kSteps16; ++step) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      if (kAll || pair < pairs) {
        uint32_t k[4];
        ldmatrix_x4(k, keys + tile_offset<kHeadDim>(pair * 16 + row, 2 * step + chunk));
        const uint32_t low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
        mma_m16n8k16<T>(s[2 * pair], q.k16[step], low);
        mma_m16n8k16<T>(s[2 * pair + 1], q.k16[step], high);
      }
    }
  }
  if constexpr (Shape::kStep8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (kAll || 2 * half < pairs) {
        uint32_t k[4];
        ldmatrix_x4(k, keys + tile_offset<kHeadDim>(half * 32 + lane, 2 * Shape::kSteps16));
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t key[1] = {k[n]};
          if (kAll || 2 * half + n / 2 < pairs) mma_m16n8k8<T>(s[4 * half + n], q.k8, key);
        }
      }
    }
  }
}

// The same scores for 16 keys alone, `keys` being a tile of 16 rows: same products, same order.
template <class T, int kHeadDim>
QF_DEVICE void score_pair(Shared<T> keys, const QueryFragments<kHeadDim>& q, float (&low)[4], float (&high)[4]) {
  using Shape = TileShape<kHeadDim>;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 0; step < Shape::kSteps16; ++step) {
    uint32_t k[4];
    ldmatrix_x4(k, keys + tile_offset<kHeadDim>(lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
    const uint32_t first[2] = {k[0], k[1]}, second[2] = {k[2], k[3]};
    mma_m16n8k16<T>(low, q.k16[step], first);
    mma_m16n8k16<T>(high, q.k16[step], second);
  }
  if constexpr (Shape::kStep8) {
    uint32_t k[2];
    ldmatrix_x2(k, keys + tile_offset<kHeadDim>(lane % 16, 2 * Shape::kSteps16));
    const uint32_t first[1] = {k[0]}, second[1] = {k[1]};
    mma_m16n8k8<T>(low, q.k8, first);
    mma_m16n8k8<T>(high, q.k8, second);
  }
}

// sum[n] += p · v of 16 keys for kTiles n8 tiles of the head from tile `first` on; row: the first of the 16 in
// `values`. Every fourth tile the warp is held together, because the compiler would read V of all tiles ahead of the
// first product, at two registers a tile; other warps cover that latency.
template <int kHeadDim, int kTiles, class T>
QF_DEVICE void value_pair(Shared<T> values, int32_t row, const uint32_t (&p)[4], int first, float (&sum)[kTiles][4]) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n + 1 < kTiles; n += 2) {
    if (n > 0 && n % 4 == 0) __syncwarp(0xffffffffu);
    uint32_t v[4];
    ldmatrix_x4_trans(v, values + tile_offset<kHeadDim>(row + lane % 16, first + n + lane / 16));
    const uint32_t low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
    mma_m16n8k16<T>(sum[n], p, low);
    mma_m16n8k16<T>(sum[n + 1], p, high);
  }
  if constexpr (kTiles % 2 != 0) {
    uint32_t v[2];
    ldmatrix_x2_trans(v, values + tile_offset<kHeadDim>(row + lane % 16, first + kTiles - 1));
    mma_m16n8k16<T>(sum[kTiles - 1], p, v);
  }
}

// The sums over one key block, keys ascending.
template <bool kAll, int kHeadDim, int kTiles, class T>
QF_DEVICE void value_tiles(Shared<T> values, const uint32_t (&p)[4][4], int32_t pairs, int first,
                           float (&sum)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
  }
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    if (kAll || pair < pairs) value_pair<kHeadDim>(values, pair * 16, p[pair], first, sum);
  }
}

}  // namespace qformer::cuda
