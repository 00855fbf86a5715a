// Adding up the k-chunks of one output tile that ran as blocks of their own.
//
// Each block stores its accumulators, in fragment order and thus coalesced, and draws a ticket of its tile. The last to
// arrive reads all of them back in ascending order, so the sum is the one that a single block forms chunk by chunk
// (run_main_loop with kSerial), bit for bit, whoever is last. The ticket counts itself back to zero.
#pragma once

#include "gemm_mainloop.cuh"

namespace qformer::cuda {

// True in all threads of the block that came last; its `sums` then hold the total over `chunks`. The block's chunk is
// blockIdx.y, its tile number blockIdx.x.
template <class Tile>
QF_DEVICE bool reduce_chunks(const GemmArgs& args, int chunks, Accumulators<Tile>& sums, Shared<int32_t> flag) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t tiles = static_cast<int64_t>(args.tiles_m) * args.tiles_n;
  const int64_t tile = static_cast<int64_t>(blockIdx.x);
  constexpr int kTileElements = Tile::kAccumulators * Tile::kThreads;
  // This thread's sums of the first chunk; four of them, a quad, are stored at a time.
  const Global<float> partials = Global<float>(args.partials) + (tile * kTileElements + thread * 4);
  const int64_t chunk_stride = tiles * kTileElements;
  const Global<float> own = partials + static_cast<int64_t>(blockIdx.y) * chunk_stride;
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMmaN; ++j) {
      const Vec<float, 4> quad{{sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]}};
      own.template store_vec<4>((i * Tile::kMmaN + j) * Tile::kThreads * 4, quad);
    }
  }
  __syncthreads();
  if (thread == 0) {
    __threadfence();  // cumulative: after the barrier it covers the stores of the whole block
    const uint32_t ticket = atomic_inc(Global<uint32_t>(args.tickets), tile, static_cast<uint32_t>(chunks - 1));
    flag.store(0, ticket == static_cast<uint32_t>(chunks - 1) ? 1 : 0);
  }
  __syncthreads();
  if (flag.load(0) == 0) return false;
  __threadfence();
  clear<Tile>(sums);
  Global<float> from = partials;
  for (int chunk = 0; chunk < chunks; ++chunk, from = from + chunk_stride) {
#pragma unroll
    for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kMmaN; ++j) {
        const Vec<float, 4> quad = from.template load_vec<4>((i * Tile::kMmaN + j) * Tile::kThreads * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] += quad[e];
      }
    }
  }
  return true;
}

}  // namespace qformer::cuda
