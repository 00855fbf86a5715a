// The main loop: accumulators += x tile · w tileᵀ over the columns of one or more k-chunks.
//
// A ring of shared-memory stages is filled stages - 1 steps ahead by cp.async; fragments are double-buffered in
// registers, so the ldmatrix of a 16-column slice runs beside the mma of the one before, across stage borders too. One
// barrier per k-step. Every accumulator takes its k16 products in ascending order, whatever the tile.
#pragma once

#include "gemm_load.cuh"
#include "prims/mma.h"

namespace qformer::cuda {

template <class Tile>
using Accumulators = float[Tile::kMmaM][Tile::kMmaN][4];

template <class Tile>
QF_DEVICE void clear(Accumulators<Tile>& a) {
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kMmaN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) a[i][j][e] = 0.0f;
}

template <class Tile>
QF_DEVICE void add_to(Accumulators<Tile>& sum, const Accumulators<Tile>& a) {
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kMmaN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] += a[i][j][e];
}

// The operands of one 16-column slice of a warp's tile.
template <class Tile>
struct Fragments {
  uint32_t x[Tile::kMmaM][4];
  uint32_t w[Tile::kMmaN / 2][4];  // two n8 tiles per ldmatrix
};

// The w tiles of a warp are consecutive. In a gated product the first half of them is of the gate matrix and the second
// half of the up matrix, for the same output columns.
template <class T, class Tile, bool kGated>
class FragmentReader {
 public:
  QF_DEVICE FragmentReader() {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    // Matrices of one ldmatrix.x4: of x, rows 0-7 and 8-15 at the low chunk, then at the high one; of w, low and high
    // chunk of rows 0-7, then of 8-15.
    const int x_row = warp / Tile::kWarpCountN * Tile::kWarpRows + lane % 16;
    const int w_row =
        warp % Tile::kWarpCountN * (kGated ? Tile::kWarpWeights / 2 : Tile::kWarpWeights) + lane % 8 + lane / 16 * 8;
    x_base_ = Tile::offset(x_row, lane / 16);
    w_base_ = Tile::kRows * Tile::kStep + Tile::offset(w_row, lane / 8 % 2);
  }

  // Slice `slice` of a stage. Rows 16 apart share their swizzle, and chunk 2 * slice + c stands at (2 * slice) ^ the
  // place of chunk c, so a slice is one bit pattern away from the first.
  QF_DEVICE void read(Fragments<Tile>& f, Shared<T> stage, int slice) const {
    const int x_slice = x_base_ ^ (2 * slice * kCopyElements), w_slice = w_base_ ^ (2 * slice * kCopyElements);
#pragma unroll
    for (int i = 0; i < Tile::kMmaM; ++i) ldmatrix_x4(f.x[i], stage + (x_slice + i * 16 * Tile::kStep));
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int row = kGated ? j % (kPairs / 2) * 16 + j / (kPairs / 2) * (Tile::kWeights / 2) : j * 16;
      ldmatrix_x4(f.w[j], stage + (w_slice + row * Tile::kStep));
    }
  }

 private:
  static constexpr int kPairs = Tile::kMmaN / 2;  // of n8 tiles
  int x_base_, w_base_;                           // where the lane's rows of slice 0 begin in a stage
};

template <class T, class Tile>
QF_DEVICE void multiply(Accumulators<Tile>& sums, const Fragments<Tile>& f) {
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMmaN / 2; ++j) {
      const uint32_t low[2] = {f.w[j][0], f.w[j][1]}, high[2] = {f.w[j][2], f.w[j][3]};
      mma_m16n8k16<T>(sums[i][2 * j], f.x[i], low);
      mma_m16n8k16<T>(sums[i][2 * j + 1], f.x[i], high);
    }
  }
}

// At most stages - 2 groups stay pending: the oldest stage has landed.
QF_DEVICE void wait_for_stage(int stages) {
  if (stages == 4)
    cp_async_wait<2>();
  else if (stages == 3)
    cp_async_wait<1>();
  else
    cp_async_wait<0>();
}

// Sums columns [k_begin, k_end), k_begin a multiple of kStep. With kSerial, chunks of args.k_chunk are summed one by
// one and added up in `sums` in ascending order; else all columns go into `sums` directly.
template <class T, class Tile, bool kGated, bool kSerial, class Loader>
QF_DEVICE void run_main_loop(const GemmArgs& args, const Loader& loader, int k_begin, int k_end, Shared<T> ring,
                             Accumulators<Tile>& sums) {
  constexpr int kSlices = Tile::kStep / 16;
  const FragmentReader<T, Tile, kGated> reader;
  const int stages = args.stages;
  const auto at = [&](int stage) { return ring + stage * Tile::kStageElements; };

  clear<Tile>(sums);
  for (int stage = 0; stage < stages - 1; ++stage) {
    const int k = k_begin + stage * Tile::kStep;
    if (k < k_end) loader.load(k, at(stage));
    cp_async_commit();
  }
  Accumulators<Tile> chunk;  // unused, and gone, without kSerial
  if constexpr (kSerial) clear<Tile>(chunk);
  int chunk_steps = args.k_chunk / Tile::kStep;

  Fragments<Tile> fragments[2];
  wait_for_stage(stages);
  __syncthreads();
  if (k_begin < k_end) reader.read(fragments[0], at(0), 0);
  int stage = 0;
  for (int k = k_begin; k < k_end; k += Tile::kStep) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      if (slice == 0) {
        // The stage before this one: all warps passed the barrier below after reading it.
        const int free_stage = stage == 0 ? stages - 1 : stage - 1;
        const int ahead = k + (stages - 1) * Tile::kStep;
        if (ahead < k_end) loader.load(ahead, at(free_stage));
        cp_async_commit();
      }
      if (slice + 1 < kSlices) {
        reader.read(fragments[(slice + 1) % 2], at(stage), slice + 1);
      } else {
        wait_for_stage(stages);
        __syncthreads();
        stage = stage + 1 == stages ? 0 : stage + 1;
        if (k + Tile::kStep < k_end) reader.read(fragments[0], at(stage), 0);
      }
      multiply<T, Tile>(kSerial ? chunk : sums, fragments[slice % 2]);
    }
    if constexpr (kSerial) {
      if (--chunk_steps == 0 || k + Tile::kStep >= k_end) {
        add_to<Tile>(sums, chunk);
        clear<Tile>(chunk);
        chunk_steps = args.k_chunk / Tile::kStep;
      }
    }
  }
  cp_async_wait_all();
  __syncthreads();
}

}  // namespace qformer::cuda
