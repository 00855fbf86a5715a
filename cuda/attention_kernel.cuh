// The kernel of the varlen attention op on tensor cores, and its choice of shape per head_dim.
//
// Registers (sm_80 to sm_120, f16; no spills) and dynamic shared memory per CTA: head_dim 32: 117–122, 21 KB · 64:
// 151–162, 25 KB · 80: 168–192, 34 KB · 88: 160–168, 39 KB · 96: 185–210, 39 KB · 128: 224–245, 49 KB. head_dim 88
// (ViT-g) takes 96 rows per CTA: 257 rows are then 3 CTAs with 17 of 18 warps at work, and K and V are read 3 times; 64
// rows would be 5 CTAs. A whole-row ("one-shot") softmax for the 257 keys of a ViT was weighed and left out: blocks do
// not wait for a running maximum here, so it would save one multiplication per element of o and block, and cost 132
// registers of scores, that is half of the warps that hide latency; and it would need a second arithmetic for the same
// op.
#pragma once

#include "attention_rows.cuh"

namespace qformer::cuda {

template <int kHeadDim>
struct RowLaunch {
  static constexpr int kWarps = kHeadDim == 88 ? 6 : 4;
  // CTAs per multiprocessor; the 64 KB of shared memory on sm_75 hold one of the larger.
  static constexpr int kLarge = QF_DEVICE_ARCH > 0 && QF_DEVICE_ARCH < 800 ? 1 : 2;
  static constexpr int kResident = kHeadDim > 64 ? kLarge : kHeadDim > 32 ? 3 : 4;
};

// Grid: row tiles, kv heads.
template <class T, int kHeadDim, bool kBias>
QF_KERNEL void QF_LAUNCH_BOUNDS(32 * RowLaunch<kHeadDim>::kWarps, RowLaunch<kHeadDim>::kResident)
    attention_kernel(AttentionProblem p) {
  constexpr int kWarps = RowLaunch<kHeadDim>::kWarps;
  SharedMemory shared;
  const RowMemory<T> memory = take_row_memory<T, kHeadDim, kWarps>(shared);
  if (blockIdx.x == 0 && blockIdx.y == 0) check_sequences(p);
  const RowTile tile = find_row_tile(p, static_cast<int32_t>(blockIdx.x), 16 * kWarps, 1);
  if (tile.rows == 0) return;
  attend_row_tile<T, kHeadDim, kWarps, false, kBias>(p, tile, static_cast<int32_t>(blockIdx.y), memory);
}

}  // namespace qformer::cuda
