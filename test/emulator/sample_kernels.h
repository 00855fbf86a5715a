// Small kernels that the emulator's own tests run right and with one planted mistake each.
#pragma once

#include "prims/copy_async.h"
#include "prims/math.h"
#include "prims/mma.h"

namespace qformer::cuda {

enum class Planted {
  kNothing,
  kNoBarrierAfterWait,     // __syncthreads after cp_async_wait removed
  kNoBarrierBeforeRefill,  // a stage is refilled while others may read it
  kWaitTooLax,             // one group more may be pending
  kNoWait,
  kNoCommit,
  kNoZeroFill,  // rows beyond M are copied from where they would lie
  kLaneSkipsLdmatrix,
  kTileOverrun,  // the last row's copy goes one chunk too far
  kNoSwizzle,
  kWrongSwizzle,  // written and read with different swizzles
  kNoBoundCheck,  // rows beyond M are stored
  kMisaligned,
  kWrongColumn,
};

struct GemmArgs {
  Global<const Half> a;  // [m, k]
  Global<const Half> b;  // [n, k]
  Global<float> c;       // [m, n]
  int m, n, k;           // n a multiple of 64, k of 32
};

inline constexpr int kTileM = 32, kTileN = 64, kTileK = 32, kStages = 3, kGemmThreads = 64;
inline constexpr size_t kGemmShared =
    shared_bytes<Half>(kStages * kTileM * kTileK) + shared_bytes<Half>(kStages * kTileN * kTileK);

// Element of 16-byte chunk `chunk` of row `row` in a tile of 32 halves a row: two rows share the 32 banks, so chunks
// are exchanged by row / 2.
template <Planted kFault>
QF_DEVICE int tile_offset(int row, int chunk, bool writing) {
  int swizzle = row / 2;
  if (kFault == Planted::kNoSwizzle || (kFault == Planted::kWrongSwizzle && writing)) swizzle = 0;
  return row * kTileK + ((chunk ^ swizzle) & 3) * 8;
}

template <Planted kFault>
QF_DEVICE void load_stage(const GemmArgs& args, Shared<Half> a, Shared<Half> b, int k_tile) {
  const int row0 = static_cast<int>(blockIdx.y) * kTileM, column0 = static_cast<int>(blockIdx.x) * kTileN;
  for (int i = static_cast<int>(threadIdx.x); i < kTileM * 4; i += kGemmThreads) {
    const int row = i / 4, chunk = i % 4, from = row0 + row;
    const bool valid = from < args.m;
    const int64_t source = static_cast<int64_t>(kFault == Planted::kNoZeroFill || valid ? from : 0) * args.k;
    int to = tile_offset<kFault>(row, chunk, true);
    if (kFault == Planted::kTileOverrun && i == kTileM * 4 - 1 && k_tile % kStages == kStages - 1) to += 32;
    if (kFault == Planted::kMisaligned && i == 5) to += 4;
    cp_async16(a + to, args.a + (source + k_tile * kTileK + chunk * 8), kFault == Planted::kNoZeroFill || valid);
  }
  for (int i = static_cast<int>(threadIdx.x); i < kTileN * 4; i += kGemmThreads) {
    const int row = i / 4, chunk = i % 4;
    cp_async16(b + tile_offset<kFault>(row, chunk, true),
               args.b + (static_cast<int64_t>(column0 + row) * args.k + k_tile * kTileK + chunk * 8));
  }
}

// c = a bᵀ: 2 warps of 32 x 32, three stages of cp.async.
template <Planted kFault>
QF_KERNEL void sample_gemm(GemmArgs args) {
  SharedMemory shared;
  const Shared<Half> a_tiles = shared.take<Half>(kStages * kTileM * kTileK);
  const Shared<Half> b_tiles = shared.take<Half>(kStages * kTileN * kTileK);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int tiles = args.k / kTileK;
  const auto stage_a = [&](int tile) { return a_tiles + tile % kStages * kTileM * kTileK; };
  const auto stage_b = [&](int tile) { return b_tiles + tile % kStages * kTileN * kTileK; };
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < tiles) load_stage<kFault>(args, stage_a(tile), stage_b(tile), tile);
    if (kFault != Planted::kNoCommit) cp_async_commit();
  }
  float c[2][4][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    if (kFault != Planted::kNoWait) cp_async_wait<kFault == Planted::kWaitTooLax ? kStages - 1 : kStages - 2>();
    if (kFault != Planted::kNoBarrierAfterWait) __syncthreads();
    // The stage refilled here is the one all warps have read before the barrier above.
    const int next = tile + (kFault == Planted::kNoBarrierBeforeRefill ? kStages : kStages - 1);
    if (next < tiles) load_stage<kFault>(args, stage_a(next), stage_b(next), next);
    cp_async_commit();
    for (int k = 0; k < kTileK; k += 16) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i) {
        const int row = 16 * i + lane % 16, chunk = k / 8 + lane / 16;
        if (kFault == Planted::kLaneSkipsLdmatrix && threadIdx.x == 7 && tile == 1) continue;
        ldmatrix_x4(a[i], stage_a(tile) + tile_offset<kFault>(row, chunk, false));
      }
      for (int j = 0; j < 2; ++j) {
        const int row = warp * 32 + 16 * j + lane % 8 + lane / 16 * 8, chunk = k / 8 + lane / 8 % 2;
        ldmatrix_x4(b[j], stage_b(tile) + tile_offset<kFault>(row, chunk, false));
      }
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) {
          const uint32_t columns[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16<Half>(c[i][j], a[i], columns);
        }
    }
  }
  const int row0 = static_cast<int>(blockIdx.y) * kTileM + lane / 4;
  const int column0 = static_cast<int>(blockIdx.x) * kTileN + warp * 32 + lane % 4 * 2;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int row = row0 + 8 * i, column = column0 + 8 * j + (kFault == Planted::kWrongColumn && j == 3 ? -8 : 0);
      if (row >= args.m && kFault != Planted::kNoBoundCheck) continue;
      const float* pair = &c[i / 2][j][i % 2 * 2];
      args.c.store_vec<2>(static_cast<int64_t>(row) * args.n + column, Vec<float, 2>{{pair[0], pair[1]}});
    }
}

enum class PlantedSum {
  kNothing,
  kNoFence,          // before the counter
  kNoReaderFence,    // after it
  kNoBarrier,        // between partial sums and the fence of thread 0
  kNoSharedBarrier,  // between the warps' sums and their reader
  kWrongLane,        // a shuffle from the wrong lane
  kShuffleInBranch,  // half of the warp skips a collective
  kEarlyExit,        // one warp's lane exits before a collective
  kUninitializedScratch,
  kDeadlock,  // one warp waits for a value nobody writes
};

struct SumArgs {
  Global<const float> x;
  Global<float> partial;     // [blocks]
  Global<uint32_t> counter;  // zero before and after
  Global<float> sum;         // [1]
  int n;
};

// The sum of n floats: each block leaves its partial sum, the block that comes last adds them in order.
template <PlantedSum kFault>
QF_KERNEL void sample_sum(SumArgs args) {
  SharedMemory shared;
  const Shared<float> warps = shared.take<float>(4);
  const Shared<uint32_t> ticket = shared.take<uint32_t>(1);
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int blocks = static_cast<int>(gridDim.x), lane = thread % 32;
  float sum = 0.0f;
  for (int i = block * 128 + thread; i < args.n; i += blocks * 128) sum += args.x[i];
  if (kFault == PlantedSum::kEarlyExit && thread == 40) return;
  if (kFault == PlantedSum::kShuffleInBranch) {
    if (lane < 16) sum += __shfl_xor_sync(kFullWarp, sum, 16);
  } else {
    sum += __shfl_xor_sync(kFullWarp, sum, 16);
  }
  for (int step = 8; step > 0; step /= 2)
    sum += __shfl_xor_sync(kFullWarp, sum, kFault == PlantedSum::kWrongLane ? 3 : step);
  if (lane == 0) warps.store(thread / 32, sum);
  if (kFault != PlantedSum::kNoSharedBarrier) __syncthreads();
  // Every thread of warp 0 stores one element, so that thread 0's fence covers writes of others.
  if (thread < 2) args.partial.store(2 * block + thread, warps[2 * thread] + warps[2 * thread + 1]);
  if (kFault != PlantedSum::kNoBarrier) __syncthreads();
  if (thread == 0) {
    if (kFault != PlantedSum::kNoFence) __threadfence();
    ticket.store(0, atomic_inc(args.counter, 0, static_cast<uint32_t>(blocks - 1)));
    if (kFault != PlantedSum::kNoReaderFence) __threadfence();
  }
  __syncthreads();
  if (kFault == PlantedSum::kDeadlock && thread < 32) {
    while (load_acquire(args.counter, 0) != 12345u) {
    }
  }
  if (ticket[0] != static_cast<uint32_t>(blocks - 1) || thread != 0) return;
  float total = 0.0f;
  for (int i = 0; i < 2 * blocks; ++i) total += args.partial[i];
  if (kFault == PlantedSum::kUninitializedScratch) total += args.partial[2 * blocks];
  args.sum.store(0, total);
}

}  // namespace qformer::cuda
