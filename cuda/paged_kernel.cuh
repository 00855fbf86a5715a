// Attention over the paged cache on tensor cores, prefill and decode in one launch of a shape that depends on shapes
// alone, so that a captured graph serves every step.
//
// Sequences with one new token are served by key blocks: `splits` CTAs per (sequence, kv head, 16 rows of the group)
// take groups of one block per warp in turn. A context of up to kPagedWarps blocks is combined in shared memory; a
// longer one leaves block partials in scratch, and the CTA that arrives last combines them. Longer sequences are served
// by rows. A row's bits are the same either way and do not depend on `splits`: see attention_softmax.cuh. Traffic: K
// and V once for decode; scratch 2 · head_dim · 4 bytes per row and 64 keys beyond that.
#pragma once

#include "attention_arrival.cuh"
#include "attention_keys.cuh"
#include "attention_rows.cuh"

namespace qformer::cuda {

constexpr int kPagedWarps = 4;

struct PagedProblem {
  AttentionProblem attention;
  float* partial_o;       // [batch, kv_heads, key_blocks, group, head_dim]
  float* partial_states;  // [batch, kv_heads, key_blocks, group, 2]
  int32_t* arrivals;      // [batch, kv_heads, group_tiles], zero between launches
  int32_t key_blocks;     // of the longest context the block table can hold
  int32_t splits, group_tiles;
  int32_t decode_ctas;  // along x: these are by key blocks, the rest by rows
};

template <class T, int kHeadDim>
struct PagedKernelShape {
  using Rows = RowKernelShape<T, kHeadDim, kPagedWarps>;
  static constexpr size_t kDecodeBytes = shared_bytes<T>(kPagedWarps * KeyWarpShape<T, kHeadDim>::kRing) +
                                         shared_bytes<float>(kPagedWarps * 32) +
                                         shared_bytes<int32_t>(kPagedWarps * kKeyBlock) + shared_bytes<int32_t>(1);
  static constexpr size_t kSharedBytes = kDecodeBytes > Rows::kSharedBytes ? kDecodeBytes : Rows::kSharedBytes;
};

// What a decode CTA serves: up to 16 query heads of one kv head for the one new token of a sequence.
struct DecodeTile {
  Sequence sequence;
  int32_t kv_head, first, rows;  // query heads kv_head * group + [first, first + rows)
  int64_t pair;                  // sequence and kv head as one number
};

template <class T>
QF_DEVICE void store_combined(const PagedProblem& args, const DecodeTile& tile, int32_t row, int32_t column,
                              float value) {
  const AttentionProblem& p = args.attention;
  const int64_t head = tile.kv_head * p.group + tile.first + row;
  const int64_t at = (static_cast<int64_t>(tile.sequence.q_begin) * p.heads + head) * p.head_dim + column;
  Global<T>(static_cast<T*>(p.o)).store(at, from_float<T>(value));
}

// The result of a context that one round of the CTA's warps covered.
template <class T, int kHeadDim>
QF_DEVICE void combine_shared(const PagedProblem& args, const DecodeTile& tile, int32_t blocks, Shared<T> rings,
                              Shared<float> states) {
  using Shape = KeyWarpShape<T, kHeadDim>;
  const int32_t head_dim = args.attention.head_dim;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < tile.rows * head_dim; i += 32 * kPagedWarps) {
    const int32_t row = i / head_dim, column = i % head_dim;
    BlockChain chain;
    join_blocks(
        chain, blocks, [&](int32_t block) { return states.template load_vec<2>(block * 32 + row * 2); },
        [&](int32_t block) {
          return (rings + block * Shape::kRing).template as<float>().load(row * Shape::kPartialPitch + column);
        });
    store_combined<T>(args, tile, row, column, finish_chain(chain));
  }
}

template <class T>
QF_DEVICE void combine_scratch(const PagedProblem& args, const DecodeTile& tile, int32_t blocks) {
  const AttentionProblem& p = args.attention;
  const Global<float> values(args.partial_o), states(args.partial_states);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < tile.rows * p.head_dim; i += 32 * kPagedWarps) {
    const int32_t row = i / p.head_dim, column = i % p.head_dim;
    auto at = [&](int32_t block) { return (tile.pair * args.key_blocks + block) * p.group + tile.first + row; };
    BlockChain chain;
    join_blocks(
        chain, blocks, [&](int32_t block) { return states.template load_vec<2>(at(block) * 2); },
        [&](int32_t block) { return values.load(at(block) * p.head_dim + column); });
    store_combined<T>(args, tile, row, column, finish_chain(chain));
  }
}

// A block's result into scratch, rows of the group only.
template <int kHeadDim>
QF_DEVICE void publish_partial(const PagedProblem& args, const DecodeTile& tile, int32_t block,
                               const RowState (&partial)[2], const float (&o)[TileShape<kHeadDim>::kTiles8][4]) {
  const AttentionProblem& p = args.attention;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const Global<float> values(args.partial_o), states(args.partial_states);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = lane / 4 + 8 * half;
    if (row >= tile.rows) continue;
    const int64_t at = (tile.pair * args.key_blocks + block) * p.group + tile.first + row;
#pragma unroll
    for (int n = 0; n < TileShape<kHeadDim>::kTiles8; ++n) {
      if (n * 8 >= p.head_dim) continue;
      values.template store_vec<2>(at * p.head_dim + n * 8 + lane % 4 * 2,
                                   Vec<float, 2>{{o[n][2 * half], o[n][2 * half + 1]}});
    }
    if (lane % 4 == 0) states.template store_vec<2>(at * 2, Vec<float, 2>{{partial[half].max, partial[half].sum}});
  }
}

template <class T, int kHeadDim, bool kBias>
QF_DEVICE void attend_decode(const PagedProblem& args, int32_t number, int32_t kv_head, SharedMemory& shared) {
  using Shape = KeyWarpShape<T, kHeadDim>;
  const AttentionProblem& p = args.attention;
  const Shared<T> rings = shared.take<T>(kPagedWarps * Shape::kRing);
  const Shared<float> states = shared.take<float>(kPagedWarps * 32);
  const Shared<int32_t> all_slots = shared.take<int32_t>(kPagedWarps * kKeyBlock);
  const Shared<int32_t> flag = shared.take<int32_t>(1);

  const int32_t split = number % args.splits, group_tile = number / args.splits % args.group_tiles;
  DecodeTile tile;
  tile.sequence = sequence_at(p, number / args.splits / args.group_tiles);
  if (tile.sequence.len_q != 1) return;
  tile.kv_head = kv_head;
  tile.first = group_tile * 16;
  tile.rows = p.group - tile.first < 16 ? p.group - tile.first : 16;
  tile.pair = static_cast<int64_t>(tile.sequence.index) * p.kv_heads + kv_head;
  const int32_t context = tile.sequence.len_k, blocks = (context + kKeyBlock - 1) / kKeyBlock;
  const int32_t rounds = (blocks + kPagedWarps - 1) / kPagedWarps;
  // A context without keys still has an output: zeros, written by the first CTA.
  if (split >= (rounds > 1 ? rounds : 1)) return;

  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  const Shared<T> ring = rings + warp * Shape::kRing;
  const Shared<int32_t> slots = all_slots + warp * kKeyBlock;
  QueryFragments<kHeadDim> q;
  fetch_query_fragments<T>(
      Global<const T>(static_cast<const T*>(p.q)), p.head_dim,
      [&](int32_t row) {
        const int64_t head = kv_head * p.group + tile.first + row;
        return row < tile.rows ? tile.sequence.q_begin * p.q_stride + head * p.head_dim : int64_t{-1};
      },
      q);
  const float scale_log2 = kBias ? kLog2E : mul_rn(p.scale, kLog2E);
  auto offset = [&](int32_t key) {
    const int64_t slot = slots.load(key);
    return slot < 0 ? int64_t{-1} : slot * p.k_stride + static_cast<int64_t>(kv_head) * p.head_dim;
  };
  for (int32_t round = split; round < rounds; round += args.splits) {
    const int32_t block = round * kPagedWarps + warp;
    if (block >= blocks) break;
    const int32_t first = block * kKeyBlock, left = context - first;
    const KeyStream<T, decltype(offset)> stream = {Global<const T>(static_cast<const T*>(p.k)),
                                                   Global<const T>(static_cast<const T*>(p.v)),
                                                   left < kKeyBlock ? left : kKeyBlock, p.head_dim, offset};
    __syncwarp(0xffffffffu);  // all lanes are done with the slots and the ring of the round before
    for (int32_t key = lane; key < stream.count; key += 32) slots.store(key, slot_of(p, tile.sequence, first + key));
    __syncwarp(0xffffffffu);
    float o[TileShape<kHeadDim>::kTiles8][4] = {};
    RowState partial[2];
    begin_block<kHeadDim>(stream, ring);
    finish_block<kHeadDim>(stream, ring, q, scale_log2, partial, o, [&](float(&s)[8][4]) {
      if constexpr (kBias) add_bias(s, p, tile.sequence, kv_head, tile.first, first);
    });
    if (rounds == 1) {
      share_partial<kHeadDim>(ring, states + warp * 32, partial, o);
    } else {
      publish_partial<kHeadDim>(args, tile, block, partial, o);
    }
  }
  if (rounds <= 1) {
    __syncthreads();
    combine_shared<T, kHeadDim>(args, tile, blocks, rings, states);
    return;
  }
  const int32_t arriving = rounds < args.splits ? rounds : args.splits;
  const Global<int32_t> counter = Global<int32_t>(args.arrivals) + (tile.pair * args.group_tiles + group_tile);
  if (arrive_last(counter, arriving, flag)) combine_scratch<T>(args, tile, blocks);
}

template <class T, int kHeadDim, bool kBias>
QF_KERNEL void QF_LAUNCH_BOUNDS(32 * kPagedWarps, kHeadDim > 64 || kBias ? 2 : 3)
    paged_attention_kernel(PagedProblem args) {
  SharedMemory shared;
  const int32_t number = static_cast<int32_t>(blockIdx.x), kv_head = static_cast<int32_t>(blockIdx.y);
  if (number == 0 && kv_head == 0) check_sequences(args.attention);
  if (number < args.decode_ctas) {
    attend_decode<T, kHeadDim, kBias>(args, number, kv_head, shared);
    return;
  }
  const RowMemory<T> memory = take_row_memory<T, kHeadDim, kPagedWarps>(shared);
  const RowTile rows = find_row_tile(args.attention, number - args.decode_ctas, 16 * kPagedWarps, 2);
  if (rows.rows == 0) return;
  attend_row_tile<T, kHeadDim, kPagedWarps, true, kBias>(args.attention, rows, kv_head, memory);
}

}  // namespace qformer::cuda
