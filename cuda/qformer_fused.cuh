// The Q-Former's cross-attention block on tensor cores: a few dozen query rows against the 257 keys of an image, where
// nearly all time is latency, so two launches do what would be five.
//
// project_attend: a CTA per (16 queries, head, image). Each warp starts its stream of keys, then forms 8 columns of
// q = x · wqᵀ + bq; then the warps share out the key blocks (attention_keys.cuh) and chain their results. q and scores
// never leave the CTA. project_normalize: a CTA per (16 rows, 64 columns) forms o · woᵀ + bo + x; the CTA that
// completes 16 rows normalises them. Both projections read weights and rows straight from global memory into fragments,
// 16 bytes a lane: the k order of a product is free as long as both operands keep it, so lane t of a quad takes 8
// consecutive columns as its share of two k16 steps. Traffic at 768 columns: 98 KB of weights per CTA of either kernel,
// 66 KB of keys and values; x and o once per CTA. Registers sm_80 / sm_90, no spills: see QF_LAUNCH_BOUNDS; shared
// memory 57 KB and 0.
#pragma once

#include "attention_arrival.cuh"
#include "attention_keys.cuh"
#include "qformer_norm.cuh"

namespace qformer::cuda {

constexpr int kBlockWarps = 8, kBlockThreads = 32 * kBlockWarps;
constexpr int kBlockHeadDim = 64;  // 8 columns per warp

// 16 rows times 8 columns of x · wᵀ for one warp. Rows lane / 4 and lane / 4 + 8 start at rows[0] and rows[1] of x
// (zeros where negative), the columns' weights at w, `hidden` (a multiple of 64) apart. Four accumulators take turns
// over the k16 steps and are added at the end.
template <class T>
QF_DEVICE void project_tile(Global<const T> x, const int64_t (&rows)[2], Global<const T> w, int32_t hidden,
                            float (&out)[4]) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t own = lane % 4 * 8;  // of every 32 columns
  const Global<const uint32_t> weights =
      (w + (static_cast<int64_t>(lane / 4) * hidden + own)).template as<const uint32_t>();
  const Global<const uint32_t> low = (x + ((rows[0] < 0 ? 0 : rows[0]) + own)).template as<const uint32_t>();
  const Global<const uint32_t> high = (x + ((rows[1] < 0 ? 0 : rows[1]) + own)).template as<const uint32_t>();
  float sums[4][4] = {};
#pragma unroll 2
  for (int32_t column = 0; column < hidden; column += 64) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int32_t at = column / 2 + part * 16;
      const Vec<uint32_t, 4> b = weights.template load_vec<4>(at);
      Vec<uint32_t, 4> first = {{0, 0, 0, 0}}, second = {{0, 0, 0, 0}};
      if (rows[0] >= 0) first = low.template load_vec<4>(at);
      if (rows[1] >= 0) second = high.template load_vec<4>(at);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t own_rows[4] = {first[2 * half], second[2 * half], first[2 * half + 1], second[2 * half + 1]};
        const uint32_t own_weights[2] = {b[2 * half], b[2 * half + 1]};
        mma_m16n8k16<T>(sums[2 * part + half], own_rows, own_weights);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
}

template <class T>
struct ProjectAttendShape {
  static constexpr int kRing = KeyWarpShape<T, kBlockHeadDim>::kRing;
  static constexpr size_t kSharedBytes = shared_bytes<T>(kBlockWarps * kRing) +
                                         shared_bytes<T>(16 * TileShape<kBlockHeadDim>::kPitch) +
                                         shared_bytes<float>(kBlockWarps * 32);
};

// q of 16 rows and one head into shared memory, 8 columns per warp.
template <class T>
QF_DEVICE void project_queries(const QFormerBlock& block, int32_t image, int32_t first, int32_t head, Shared<T> tile) {
  const QfQFormerCrossAttention& a = block.args;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
  int64_t rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t query = first + lane / 4 + 8 * half;
    rows[half] = query < a.num_query ? (image * a.rows_per_batch + query) * block.hidden : int64_t{-1};
  }
  const int32_t column = head * kBlockHeadDim + warp * 8;
  float q[4];
  project_tile<T>(Global<const T>(static_cast<const T*>(a.x)), rows,
                  Global<const T>(static_cast<const T*>(a.wq)) + static_cast<int64_t>(column) * block.hidden,
                  block.hidden, q);
  const Global<const float> bias(a.bq);
  const float low = bias.load(column + lane % 4 * 2), high = bias.load(column + lane % 4 * 2 + 1);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t at = tile_offset<kBlockHeadDim>(lane / 4 + 8 * half, warp) + lane % 4 * 2;
    tile.template as<uint32_t>().store(at / 2, pack2<T>(q[2 * half] + low, q[2 * half + 1] + high));
  }
}

// Grid: tiles of 16 queries, heads, images.
template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kBlockThreads, 1) project_attend_kernel(QFormerBlock block) {
  using Keys = KeyWarpShape<T, kBlockHeadDim>;
  constexpr int kElements = 16 * kBlockHeadDim / kBlockThreads;  // of the result, per thread
  SharedMemory shared;
  const Shared<T> rings = shared.take<T>(kBlockWarps * Keys::kRing);
  const Shared<T> q_tile = shared.take<T>(16 * TileShape<kBlockHeadDim>::kPitch);
  const Shared<float> states = shared.take<float>(kBlockWarps * 32);
  const QfQFormerCrossAttention& a = block.args;
  const int32_t first = static_cast<int32_t>(blockIdx.x) * 16, head = static_cast<int32_t>(blockIdx.y);
  const int32_t image = static_cast<int32_t>(blockIdx.z), keys = static_cast<int32_t>(a.keys);
  const int32_t thread = static_cast<int32_t>(threadIdx.x), warp = thread / 32;
  const int32_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;

  int32_t own = warp;  // key block of this warp in this round
  auto offset = [&](int32_t key) {
    return (static_cast<int64_t>(image) * keys + own * kKeyBlock + key) * a.kv_stride + head * kBlockHeadDim;
  };
  KeyStream<T, decltype(offset)> stream = {Global<const T>(static_cast<const T*>(a.k)),
                                           Global<const T>(static_cast<const T*>(a.v)), 0, kBlockHeadDim, offset};
  auto begin_own_block = [&] {
    const int32_t left = keys - own * kKeyBlock;
    stream.count = left < kKeyBlock ? left : kKeyBlock;
    if (own < blocks) begin_block<kBlockHeadDim>(stream, rings + warp * Keys::kRing);
  };
  begin_own_block();
  project_queries<T>(block, image, first, head, q_tile);
  __syncthreads();
  QueryFragments<kBlockHeadDim> q;
  load_query_fragments<T, kBlockHeadDim>(q_tile, 0, q);

  BlockChain chains[kElements];
  const float scale_log2 = mul_rn(a.scale, kLog2E);
  for (int32_t round = 0; round < blocks; round += kBlockWarps) {
    if (own < blocks) {
      float o[TileShape<kBlockHeadDim>::kTiles8][4] = {};
      RowState partial[2];
      finish_block<kBlockHeadDim>(stream, rings + warp * Keys::kRing, q, scale_log2, partial, o);
      share_partial<kBlockHeadDim>(rings + warp * Keys::kRing, states + warp * 32, partial, o);
    }
    __syncthreads();
    const int32_t here = blocks - round < kBlockWarps ? blocks - round : kBlockWarps;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int32_t row = (thread + i * kBlockThreads) / kBlockHeadDim, column = thread % kBlockHeadDim;
      join_blocks(
          chains[i], here, [&](int32_t b) { return states.template load_vec<2>(b * 32 + row * 2); },
          [&](int32_t b) {
            return (rings + b * Keys::kRing).template as<float>().load(row * Keys::kPartialPitch + column);
          });
    }
    __syncthreads();  // the rings are free for the next round
    own += kBlockWarps;
    if (round + kBlockWarps < blocks) begin_own_block();
  }
  const Global<T> out(static_cast<T*>(block.context));
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int32_t query = first + (thread + i * kBlockThreads) / kBlockHeadDim;
    if (query >= a.num_query) continue;
    const int64_t row = image * a.num_query + query;
    out.store(row * block.hidden + head * kBlockHeadDim + thread % kBlockHeadDim,
              from_float<T>(finish_chain(chains[i])));
  }
}

// Grid: tiles of 16 rows, tiles of 64 columns and one more for the rows that pass through.
template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kBlockThreads, 1) project_normalize_kernel(QFormerBlock block) {
  SharedMemory shared;
  const Shared<int32_t> flag = shared.take<int32_t>(1);
  const QfQFormerCrossAttention& a = block.args;
  const int32_t column_tiles = static_cast<int32_t>(gridDim.y) - 1;
  if (static_cast<int32_t>(blockIdx.y) == column_tiles) {
    copy_passing_rows<T>(block, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
    return;
  }
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t first = static_cast<int32_t>(blockIdx.x) * 16;
  const int32_t column = (static_cast<int32_t>(blockIdx.y) * kBlockWarps + warp) * 8;
  int64_t rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = first + lane / 4 + 8 * half;
    rows[half] = row < block.rows ? static_cast<int64_t>(row) * block.hidden : int64_t{-1};
  }
  float sum[4];
  project_tile<T>(Global<const T>(static_cast<const T*>(block.context)), rows,
                  Global<const T>(static_cast<const T*>(a.wo)) + static_cast<int64_t>(column) * block.hidden,
                  block.hidden, sum);
  const int32_t own = column + lane % 4 * 2;
  const Global<const float> bias(a.bo);
  const Global<const uint32_t> x(static_cast<const uint32_t*>(a.x));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (rows[half] < 0) continue;
    float low, high;
    unpack2<T>(x.load((outer_row(block, first + lane / 4 + 8 * half) * block.hidden + own) / 2), low, high);
    const Vec<float, 2> result = {
        {sum[2 * half] + bias.load(own) + low, sum[2 * half + 1] + bias.load(own + 1) + high}};
    Global<float>(block.sum).template store_vec<2>(rows[half] + own, result);
  }
  if (!arrive_last(Global<int32_t>(block.arrivals) + blockIdx.x, column_tiles, flag)) return;
#pragma unroll 1
  for (int32_t row = first + warp; row < first + 16 && row < block.rows; row += kBlockWarps) {
    normalize_row<T>(block, row);
  }
}

}  // namespace qformer::cuda
