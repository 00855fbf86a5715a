// Launchers of the tensor-core attention kernels for one activation dtype; included by attention_f16.cu and
// attention_bf16.cu. A head_dim between two instances runs on the next larger one, its missing columns being zeros.
#pragma once

#include <algorithm>

#include "attention_kernel.cuh"
#include "attention_launch.h"
#include "paged_kernel.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {

// Calls launch(std::integral_constant<int, D>) for the instance D that serves head_dim.
template <class Launch>
QfStatus with_head_dim(int32_t head_dim, const Launch& launch) {
  if (head_dim <= 32) return launch(std::integral_constant<int, 32>());
  if (head_dim <= 64) return launch(std::integral_constant<int, 64>());
  if (head_dim <= 80) return launch(std::integral_constant<int, 80>());
  if (head_dim <= 88) return launch(std::integral_constant<int, 88>());
  if (head_dim <= 96) return launch(std::integral_constant<int, 96>());
  return launch(std::integral_constant<int, 128>());
}

template <class T, int kHeadDim, bool kBias>
QfStatus launch_row_kernel(DeviceContext& context, const AttentionProblem& p) {
  constexpr int kWarps = RowLaunch<kHeadDim>::kWarps;
  const int64_t rows = static_cast<int64_t>(p.tokens_q) * p.group;
  // One CTA at least: it reports offsets that do not fit.
  const int64_t tiles = std::max<int64_t>(1, row_tile_bound(rows, p.batch, 16 * kWarps));
  const dim3 grid(static_cast<uint32_t>(tiles), static_cast<uint32_t>(p.kv_heads));
  return launch("attention", context.stream, attention_kernel<T, kHeadDim, kBias>, grid, dim3(32 * kWarps),
                RowKernelShape<T, kHeadDim, kWarps>::kSharedBytes, p);
}

template <class T>
QfStatus launch_row_attention(DeviceContext& context, const AttentionProblem& p) {
  if (p.bias != nullptr) return launch_row_kernel<T, 64, true>(context, p);
  return with_head_dim(p.head_dim,
                       [&](auto width) { return launch_row_kernel<T, decltype(width)::value, false>(context, p); });
}

// CTAs that share one decode row. Any number gives the same bits; enough of them to fill the device twice over.
inline int32_t decode_splits(const DeviceContext& context, int64_t pairs, int64_t rounds) {
  const int64_t wanted = (8 * static_cast<int64_t>(context.multiprocessors) + pairs - 1) / pairs;
  return static_cast<int32_t>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, rounds)));
}

template <class T>
QfStatus launch_paged_attention(DeviceContext& context, const AttentionProblem& p) {
  PagedProblem args = {};
  args.attention = p;
  const int64_t longest = static_cast<int64_t>(p.max_blocks) * p.block_size;
  args.key_blocks = static_cast<int32_t>((longest + kKeyBlock - 1) / kKeyBlock);
  args.group_tiles = (p.group + 15) / 16;
  const int64_t pairs = static_cast<int64_t>(p.batch) * p.kv_heads;
  const int64_t rounds = (args.key_blocks + kPagedWarps - 1) / kPagedWarps;
  args.splits = decode_splits(context, pairs * args.group_tiles, rounds);
  args.decode_ctas = args.splits * args.group_tiles * p.batch;
  if (rounds > 1) {
    const size_t partials = static_cast<size_t>(pairs * args.key_blocks * p.group);
    const size_t values = partials * static_cast<size_t>(p.head_dim) * sizeof(float);  // a multiple of 32 bytes
    void* scratch = nullptr;
    QfStatus status = context.scratch(values + partials * 2 * sizeof(float), &scratch);
    if (status == QF_OK) status = context.counters(static_cast<size_t>(pairs * args.group_tiles), &args.arrivals);
    if (status != QF_OK) return status;
    args.partial_o = static_cast<float*>(scratch);
    args.partial_states = reinterpret_cast<float*>(static_cast<char*>(scratch) + values);
  }
  // Only sequences with two new tokens or more are cut into row tiles.
  const int64_t rows = p.tokens_q > 1 ? static_cast<int64_t>(p.tokens_q) * p.group : 0;
  const int64_t tiles = row_tile_bound(rows, std::min<int64_t>(p.batch, p.tokens_q / 2), 16 * kPagedWarps);
  const dim3 grid(static_cast<uint32_t>(args.decode_ctas + tiles), static_cast<uint32_t>(p.kv_heads));
  const auto run = [&](auto width, auto biased) {
    constexpr int kHeadDim = decltype(width)::value;
    constexpr bool kBias = decltype(biased)::value;
    return launch("pagedAttention", context.stream, paged_attention_kernel<T, kHeadDim, kBias>, grid,
                  dim3(32 * kPagedWarps), PagedKernelShape<T, kHeadDim>::kSharedBytes, args);
  };
  if (p.bias != nullptr) return run(std::integral_constant<int, 64>(), std::true_type());
  return with_head_dim(p.head_dim, [&](auto width) { return run(width, std::false_type()); });
}

}  // namespace qformer::cuda
