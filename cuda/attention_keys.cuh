// Attention by key blocks, on tensor cores: a warp takes one block of 64 keys for up to 16 rows and leaves (max, sum,
// o) of that block; whoever holds all blocks of a row chains them up in ascending order (attention_softmax.cuh). This
// is how few rows meet many keys: decode, and the Q-Former's queries.
//
// Each warp streams its keys and values alone, 16 rows at a time through a ring of stages, so no barrier stalls the
// stream. Rows beyond those given are zeros: tensor cores at 1/16 use still outrun memory by far (16 FLOP a byte).
// Traffic: K and V once, 16 bytes a lane; 2 % of that again for block partials where several CTAs share a row.
#pragma once

#include "attention_problem.cuh"
#include "attention_softmax.cuh"
#include "attention_tile.cuh"

namespace qformer::cuda {

template <class T, int kHeadDim>
struct KeyWarpShape {
  using Tile = TileShape<kHeadDim>;
  static constexpr int kStages = 3;
  static constexpr int kStage = 16 * Tile::kPitch;  // elements
  static constexpr int kRing = kStages * kStage;    // elements of shared memory per warp
  // A warp's result in its own ring once the stream is over: [16][kPartialPitch] f32, 8 banks from row to row.
  static constexpr int kPartialPitch = kHeadDim + (kHeadDim % 16 == 0 ? 8 : 16);
  static_assert(16 * kPartialPitch * sizeof(float) <= kRing * sizeof(T), "a partial fits into the ring");
};

// Fragments of q straight from global memory: lane / 4 and lane / 4 + 8 are the rows; offset(row) < 0 gives zeros.
template <class T, int kHeadDim, class Offset>
QF_DEVICE void fetch_query_fragments(Global<const T> source, int32_t head_dim, const Offset& offset,
                                     QueryFragments<kHeadDim>& q) {
  using Shape = TileShape<kHeadDim>;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, t = lane % 4 * 2;
  const int64_t rows[2] = {offset(lane / 4), offset(lane / 4 + 8)};
  auto fetch = [&](int half, int32_t column) {
    if (rows[half] < 0 || column >= head_dim) return 0u;
    return (source + rows[half]).template as<const uint32_t>().load((column + t) / 2);
  };
#pragma unroll
  for (int step = 0; step < Shape::kSteps16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) q.k16[step][i] = fetch(i % 2, step * 16 + i / 2 * 8);
  }
  if constexpr (Shape::kStep8) {
    q.k8[0] = fetch(0, Shape::kSteps16 * 16);
    q.k8[1] = fetch(1, Shape::kSteps16 * 16);
  }
}

// The keys of one block as a warp reads them. offset(key): element offset of key number `key` of the block in k and v
// (equal strides), or -1; only asked for keys below `count`.
template <class T, class Offset>
struct KeyStream {
  Global<const T> k, v;
  int32_t count;  // keys of the block that exist, 1 … 64
  int32_t head_dim;
  const Offset& offset;
};

// Puts step `step` of a block under way: 0 … 3 are the keys, 4 … 7 the values, 16 rows each.
template <int kHeadDim, class T, class Offset>
QF_DEVICE void issue_step(const KeyStream<T, Offset>& stream, Shared<T> ring, int step) {
  using Shape = KeyWarpShape<T, kHeadDim>;
  constexpr int kChunks = TileShape<kHeadDim>::kChunks;
  const int32_t pair = step % 4;
  if (step < 8 && pair * 16 < stream.count) {
    const Shared<T> stage = ring + step % Shape::kStages * Shape::kStage;
    const Global<const T> source = step < 4 ? stream.k : stream.v;
#pragma unroll 1  // addresses of a whole tile would cost more registers than they save time
    for (int32_t i = static_cast<int32_t>(threadIdx.x) % 32; i < 16 * kChunks; i += 32) {
      const int32_t row = i / kChunks, chunk = i % kChunks, key = pair * 16 + row;
      const int64_t begin = key < stream.count ? stream.offset(key) : -1;
      const bool valid = begin >= 0 && chunk * 8 < stream.head_dim;
      cp_async16(stage + tile_offset<kHeadDim>(row, chunk), source + (valid ? begin + chunk * 8 : 0), valid);
    }
  }
  cp_async_commit();
}

template <int kHeadDim, class T, class Offset>
QF_DEVICE void begin_block(const KeyStream<T, Offset>& stream, Shared<T> ring) {
#pragma unroll
  for (int step = 0; step < KeyWarpShape<T, kHeadDim>::kStages - 1; ++step) issue_step<kHeadDim>(stream, ring, step);
}

struct NoBias {
  QF_DEVICE void operator()(float (&)[8][4]) const {}
};

// One block for 16 rows that all see its first `count` keys; begin_block came before. bias(scores) adds to the scores.
template <int kHeadDim, class T, class Offset, class Bias = NoBias>
QF_DEVICE void finish_block(const KeyStream<T, Offset>& stream, Shared<T> ring, const QueryFragments<kHeadDim>& q,
                            float scale_log2, RowState (&partial)[2], float (&o)[TileShape<kHeadDim>::kTiles8][4],
                            const Bias& bias = {}) {
  using Shape = KeyWarpShape<T, kHeadDim>;
  float s[8][4] = {};
  uint32_t weights[4][4];
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    const int pair = step % 4;
    cp_async_wait<Shape::kStages - 2>();
    __syncwarp(0xffffffffu);  // this step has landed for all lanes; all lanes are done with the step before
    issue_step<kHeadDim>(stream, ring, step + Shape::kStages - 1);
    const Shared<T> stage = ring + step % Shape::kStages * Shape::kStage;
    if (pair * 16 < stream.count) {
      if (step < 4) {
        score_pair<T, kHeadDim>(stage, q, s[2 * pair], s[2 * pair + 1]);
      } else {
        value_pair<kHeadDim>(stage, 0, weights[pair], 0, o);
      }
    }
    if (step == 3) {
      const KeyRange range[2] = {{0, stream.count}, {0, stream.count}};
      bias(s);
      if (stream.count < kKeyBlock) mask_block(s, 0, range);
      softmax_block<T>(s, scale_log2, weights, partial);
    }
  }
}

// Leaves a block's result in the warp's own ring for the other warps of the CTA. states: [16][2] (max, sum).
template <int kHeadDim, class T>
QF_DEVICE void share_partial(Shared<T> ring, Shared<float> states, const RowState (&partial)[2],
                             const float (&o)[TileShape<kHeadDim>::kTiles8][4]) {
  constexpr int kPitch = KeyWarpShape<T, kHeadDim>::kPartialPitch;
  const Shared<float> out = ring.template as<float>();
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  cp_async_wait_all();
  __syncwarp(0xffffffffu);  // all lanes are done with the ring as a ring
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = lane / 4 + 8 * half;
#pragma unroll
    for (int n = 0; n < TileShape<kHeadDim>::kTiles8; ++n) {
      out.template store_vec<2>(row * kPitch + n * 8 + lane % 4 * 2,
                                Vec<float, 2>{{o[n][2 * half], o[n][2 * half + 1]}});
    }
    if (lane % 4 == 0) states.template store_vec<2>(row * 2, Vec<float, 2>{{partial[half].max, partial[half].sum}});
  }
}

// One element of o on its way through the blocks of its row, in ascending order: the chain that attend_row_tile carries
// out in registers.
struct BlockChain {
  RowState row = {negative_infinity(), 0.0f};
  float o = 0.0f;
};

// Adds blocks [0, blocks). state(block) and value(block) read (max, sum) and the element of a block.
template <class State, class Value>
QF_DEVICE void join_blocks(BlockChain& chain, int32_t blocks, const State& state, const Value& value) {
#pragma unroll 4
  for (int32_t block = 0; block < blocks; ++block) {
    const Vec<float, 2> s = state(block);
    const MergeFactors f = merge(chain.row, RowState{s[0], s[1]});
    chain.o = fmaf(value(block), f.block_factor, mul_rn(chain.o, f.factor));
  }
}

QF_DEVICE float finish_chain(const BlockChain& chain) { return chain.o * inverse_sum(chain.row.sum); }

}  // namespace qformer::cuda
