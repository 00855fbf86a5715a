// The launch of a weight stream: how units of weight rows and the chunks of k become warps and blocks, and how deep the
// rings of shared memory are.
#pragma once

#include <algorithm>

#include "decode_stream.cuh"

namespace qformer::cuda {

inline DecodeTokens decode_tokens(const GemmArgs& product) {
  return {product.x, product.norm_weight, product.ldx, product.m, product.k, row_warps(product.k), product.norm_eps, 0};
}

// Tiles of 8 tokens that a kernel is made for.
inline int token_tiles(int32_t m) { return m <= 8 ? 1 : m <= 16 ? 2 : 4; }

struct StreamPlan {
  int32_t blocks, warps, stages;
  size_t bytes;  // of shared memory
};

// As deep a ring as lets all blocks run at once, or three stages. `shared_bytes_of`: (warps, stages) of a block.
template <class SharedBytes>
StreamPlan plan_ring(const DeviceContext& context, int32_t blocks, int32_t warps, SharedBytes shared_bytes_of) {
  constexpr size_t kReserved = 1024;  // per block, by the system
  const int32_t processors = std::max(context.multiprocessors, 1);
  const size_t limit = context.shared_memory_per_block_optin;
  const auto together = static_cast<size_t>((blocks + processors - 1) / processors);
  StreamPlan plan = {blocks, warps, kMaxStages, 0};
  for (;; --plan.stages) {
    plan.bytes = shared_bytes_of(plan.warps, plan.stages);
    const bool fits = plan.bytes <= limit;
    if (fits && (plan.stages <= 3 || together * (plan.bytes + kReserved) <= limit + kReserved)) return plan;
    if (plan.stages == 2) return plan;
  }
}

// The same with the warps of a block: the chunks of as many units as fit.
template <class SharedBytes>
StreamPlan plan_stream(const DeviceContext& context, int32_t units, int32_t chunks, SharedBytes shared_bytes_of) {
  const int32_t processors = std::max(context.multiprocessors, 1);
  const auto blocks_of = [&](int32_t per_block) { return (units + per_block - 1) / per_block; };
  int32_t per_block = std::max(kMaxStreamWarps / chunks, 1);
  while (per_block > 1 && blocks_of(per_block) < processors) --per_block;
  return plan_ring(context, blocks_of(per_block), per_block * chunks, shared_bytes_of);
}

}  // namespace qformer::cuda
