// Attention by rows, on tensor cores: a CTA owns 16 rows per warp of one sequence and kv head and walks the keys they
// see, block by block. Serves the varlen op and the prefill rows of the paged op.
//
// One K and one V tile in shared memory, as in FlashAttention-2: V of a block is under way while its scores are formed,
// K of the next block while p·v is; two barriers per block. Fragments of q stay in registers. Blocks wholly visible to
// a warp run without masks; of others only the groups of 16 keys up to its last visible one are computed. Traffic: q
// and o once; K and V once per 16 · warps rows, mostly from L2.
#pragma once

#include "attention_problem.cuh"
#include "attention_softmax.cuh"
#include "attention_tile.cuh"

namespace qformer::cuda {

template <class T, int kHeadDim, int kWarps>
struct RowKernelShape {
  using Tile = TileShape<kHeadDim>;
  static constexpr int kRows = 16 * kWarps, kThreads = 32 * kWarps;
  static constexpr size_t kSharedBytes = shared_bytes<T>(kRows * Tile::kPitch) +
                                         2 * shared_bytes<T>(kKeyBlock * Tile::kPitch) +
                                         shared_bytes<int32_t>(2 * kKeyBlock);
};

// Puts `rows` rows of a tile under way, 16 bytes per thread and turn. offset(row): element offset of the row in
// `source`, or -1 for a row of zeros. Columns from head_dim on are zeros.
template <int kHeadDim, int kThreads, class T, class Offset>
QF_DEVICE void load_tile(Shared<T> tile, Global<const T> source, int32_t rows, int32_t head_dim, const Offset& offset) {
  constexpr int kChunks = TileShape<kHeadDim>::kChunks;
#pragma unroll 1  // addresses of a whole tile would cost more registers than they save time
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < rows * kChunks; i += kThreads) {
    const int32_t row = i / kChunks, chunk = i % kChunks;
    const int64_t begin = offset(row);
    const bool valid = begin >= 0 && chunk * 8 < head_dim;
    cp_async16(tile + tile_offset<kHeadDim>(row, chunk), source + (valid ? begin + chunk * 8 : 0), valid);
  }
}

// Element offset of a row's q (stride q_stride) or o (dense).
QF_DEVICE int64_t row_offset(const AttentionProblem& p, const Sequence& s, int32_t kv_head, int32_t row,
                             int64_t stride) {
  const int64_t token = s.q_begin + row / p.group;
  return token * stride + static_cast<int64_t>(kv_head * p.group + row % p.group) * p.head_dim;
}

// o = accumulated / sum of one warp's 16 rows, through shared memory so that rows leave in 16-byte pieces.
template <int kHeadDim, class T>
QF_DEVICE void store_rows(const AttentionProblem& p, const RowTile& tile, int32_t kv_head, int32_t warp_row,
                          Shared<T> stage, const float (&o)[TileShape<kHeadDim>::kTiles8][4],
                          const RowState (&state)[2]) {
  constexpr int kChunks = TileShape<kHeadDim>::kChunks;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const float inverse[2] = {inverse_sum(state[0].sum), inverse_sum(state[1].sum)};
#pragma unroll
  for (int n = 0; n < TileShape<kHeadDim>::kTiles8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair = pack2<T>(o[n][2 * half] * inverse[half], o[n][2 * half + 1] * inverse[half]);
      const int32_t at = tile_offset<kHeadDim>(warp_row + lane / 4 + 8 * half, n) + lane % 4 * 2;
      stage.template as<uint32_t>().store(at / 2, pair);
    }
  }
  __syncwarp(0xffffffffu);
  const Global<T> out(static_cast<T*>(p.o));
  for (int32_t i = lane; i < 16 * kChunks; i += 32) {
    const int32_t row = i / kChunks, chunk = i % kChunks;
    const int32_t r = tile.first + warp_row + row;
    if (r >= tile.rows || chunk * 8 >= p.head_dim) continue;
    const auto piece = stage.template load_vec<8>(tile_offset<kHeadDim>(warp_row + row, chunk));
    out.template store_vec<8>(
        row_offset(p, tile.sequence, kv_head, r, static_cast<int64_t>(p.heads) * p.head_dim) + chunk * 8, piece);
  }
}

// p·v of one block joins o, a few n8 tiles of the head at a time, so that only those need registers twice.
template <bool kAll, int kHeadDim, int kFirst, class T>
QF_DEVICE void accumulate_values(Shared<T> values, const uint32_t (&weights)[4][4], int32_t pairs,
                                 const MergeFactors (&f)[2], float (&o)[TileShape<kHeadDim>::kTiles8][4]) {
  constexpr int kLeft = TileShape<kHeadDim>::kTiles8 - kFirst;
  if constexpr (kLeft > 0) {
    constexpr int kTiles = kLeft < 4 ? kLeft : 4;
    float sum[kTiles][4];
    value_tiles<kAll, kHeadDim>(values, weights, pairs, kFirst, sum);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[kFirst + n][i] = fmaf(sum[n][i], f[i / 2].block_factor, mul_rn(o[kFirst + n][i], f[i / 2].factor));
      }
    }
    __syncwarp(0xffffffffu);  // keeps V of the next tiles out of registers: see value_pair
    accumulate_values<kAll, kHeadDim, kFirst + kTiles>(values, weights, pairs, f, o);
  }
}

// What a warp knows of its 16 rows: the ranges of this lane's two, and the bounds that hold for all.
struct WarpRows {
  KeyRange range[2];
  int32_t last_begin, first_end, last_end;  // begin of the last row, ends of the first and the last row
};

QF_DEVICE WarpRows warp_rows(const AttentionProblem& p, const RowTile& tile, int32_t warp_first) {
  const int32_t last_row = tile.rows - 1;
  auto range = [&](int32_t row) { return visible_keys(p, tile.sequence, (row < last_row ? row : last_row) / p.group); };
  const int32_t g = static_cast<int32_t>(threadIdx.x) % 32 / 4;
  const KeyRange first = range(warp_first), last = range(warp_first + 15);
  return {{range(warp_first + g), range(warp_first + g + 8)}, last.begin, first.end, last.end};
}

// The pieces of shared memory that one CTA works in.
template <class T>
struct RowMemory {
  Shared<T> q, k, v;      // [rows], [64], [64] rows of the tile layout
  Shared<int32_t> slots;  // paged: cache slots of two consecutive blocks, by block % 2
};

template <class T, int kHeadDim, int kWarps, bool kPaged, bool kBias>
QF_DEVICE void attend_row_tile(const AttentionProblem& p, const RowTile& tile, int32_t kv_head,
                               const RowMemory<T>& memory) {
  using Shape = RowKernelShape<T, kHeadDim, kWarps>;
  const Sequence& sequence = tile.sequence;
  const int32_t thread = static_cast<int32_t>(threadIdx.x), warp = thread / 32;
  const int32_t warp_first = tile.first + warp * 16;
  const bool warp_works = warp_first < tile.rows;
  const WarpRows rows = warp_rows(p, tile, warp_first);
  const int32_t last_row = tile.first + Shape::kRows < tile.rows ? tile.first + Shape::kRows - 1 : tile.rows - 1;
  const int32_t begin_key = visible_keys(p, sequence, tile.first / p.group).begin;
  const int32_t end_key = visible_keys(p, sequence, last_row / p.group).end;
  const int32_t first_block = begin_key / kKeyBlock, end_block = (end_key + kKeyBlock - 1) / kKeyBlock;

  const Global<const T> q_source(static_cast<const T*>(p.q)), k_source(static_cast<const T*>(p.k)),
      v_source(static_cast<const T*>(p.v));
  load_tile<kHeadDim, Shape::kThreads>(memory.q, q_source, Shape::kRows, p.head_dim, [&](int32_t row) {
    const int32_t r = tile.first + row;
    return r < tile.rows ? row_offset(p, sequence, kv_head, r, p.q_stride) : int64_t{-1};
  });
  // Where key `row` of a block lies. Paged: the slots of a block were put into shared memory a block ahead.
  auto load_keys = [&](Shared<T> dst, Global<const T> source, int64_t stride, int32_t block) {
    load_tile<kHeadDim, Shape::kThreads>(dst, source, kKeyBlock, p.head_dim, [&](int32_t row) {
      const int32_t key = block * kKeyBlock + row;
      int64_t at = static_cast<int64_t>(sequence.k_begin) + key;
      if (key >= end_key) return int64_t{-1};
      if (kPaged) at = memory.slots.load(block % 2 * kKeyBlock + row);
      return at < 0 ? int64_t{-1} : at * stride + static_cast<int64_t>(kv_head) * p.head_dim;
    });
  };
  auto find_slot = [&](int32_t block) {
    const int32_t key = block * kKeyBlock + thread;
    return kPaged && thread < kKeyBlock && key < end_key ? slot_of(p, sequence, key) : -1;
  };
  auto keep_slot = [&](int32_t block, int32_t slot) {
    if (kPaged && thread < kKeyBlock) memory.slots.store(block % 2 * kKeyBlock + thread, slot);
  };
  int32_t next_slot = -1;
  if (kPaged) {
    keep_slot(first_block, find_slot(first_block));
    next_slot = find_slot(first_block + 1);
    __syncthreads();
  }
  if (first_block < end_block) load_keys(memory.k, k_source, p.k_stride, first_block);
  cp_async_commit();

  QueryFragments<kHeadDim> q = {};
  RowState state[2] = {{negative_infinity(), 0.0f}, {negative_infinity(), 0.0f}};
  float o[TileShape<kHeadDim>::kTiles8][4] = {};
  const float scale_log2 = kBias ? kLog2E : mul_rn(p.scale, kLog2E);

  for (int32_t block = first_block; block < end_block; ++block) {
    const int32_t first = block * kKeyBlock;
    keep_slot(block + 1, next_slot);
    cp_async_wait_all();
    __syncthreads();  // K (and q) have landed; everybody is done with V of the block before
    load_keys(memory.v, v_source, p.v_stride, block);
    cp_async_commit();
    if (block == first_block && warp_works) load_query_fragments<T, kHeadDim>(memory.q, warp * 16, q);
    next_slot = find_slot(block + 2);

    const int32_t seen = rows.last_end - first;  // keys of the block up to the last one that a row of the warp sees
    const int32_t pairs = !warp_works || seen <= 0 ? 0 : seen >= kKeyBlock ? 4 : (seen + 15) / 16;
    const bool inside = pairs == 4 && rows.last_begin <= first && rows.first_end >= first + kKeyBlock;
    uint32_t weights[4][4];
    MergeFactors factors[2];
    if (pairs > 0) {
      float s[8][4] = {};
      if (inside) {
        score_block<true, T, kHeadDim>(memory.k, q, pairs, s);
      } else {
        score_block<false, T, kHeadDim>(memory.k, q, pairs, s);
      }
      if constexpr (kBias) add_bias(s, p, sequence, kv_head, warp_first, first);
      if (!inside) mask_block(s, first, rows.range);
      RowState partial[2];
      softmax_block<T>(s, scale_log2, weights, partial);
      factors[0] = merge(state[0], partial[0]);
      factors[1] = merge(state[1], partial[1]);
    }
    cp_async_wait_all();
    __syncthreads();  // V has landed; everybody is done with K
    if (block + 1 < end_block) load_keys(memory.k, k_source, p.k_stride, block + 1);
    cp_async_commit();
    if (inside) {
      accumulate_values<true, kHeadDim, 0>(memory.v, weights, pairs, factors, o);
    } else if (pairs > 0) {
      accumulate_values<false, kHeadDim, 0>(memory.v, weights, pairs, factors, o);
    }
  }
  cp_async_wait_all();
  __syncthreads();  // memory.q, empty key ranges included, is free to stage the result
  if (warp_works) store_rows<kHeadDim>(p, tile, kv_head, warp * 16, memory.q, o, state);
}

template <class T, int kHeadDim, int kWarps>
QF_DEVICE RowMemory<T> take_row_memory(SharedMemory& shared) {
  constexpr int kPitch = TileShape<kHeadDim>::kPitch;
  RowMemory<T> memory;
  memory.q = shared.take<T>(16 * kWarps * kPitch);
  memory.k = shared.take<T>(kKeyBlock * kPitch);
  memory.v = shared.take<T>(kKeyBlock * kPitch);
  memory.slots = shared.take<int32_t>(2 * kKeyBlock);
  return memory;
}

}  // namespace qformer::cuda
