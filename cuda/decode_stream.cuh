// The weight-streaming product of the decode family: tiles of 16 weight rows times up to 32 tokens.
//
// Weights are the A operand of mma.m16n8k16 and tokens its n8 side, for one token as for 32: the tensor cores are idle
// anyway (a step of 1 KB of weights costs 2 mma; an SM gets 15 bytes per clock from HBM), a lane spends no conversions
// on weights, and every token's sum is the same chain of mma whatever stands in the other columns. So rows do not
// depend on m.
//
// The 8 warps of a block share one output tile and deal out its columns: warp w takes the steps of 64 columns w, w + 8,
// w + 16, …, and the 8 partial sums are added in warp order. Lane (g, t) loads 16 bytes of rows g and g + 8 at column
// 8t of a 32-column half step, straight from global memory into the A fragment: mma may see k in any order as long as
// the tokens' fragment (16 bytes at column 8t of token g) follows. Traffic: each weight byte once, past L1; tokens from
// L1, L2 or, when normalised here, from shared memory.
//
// In flight: 4 loads of 16 bytes per lane, tile and step = 16 KB per block; 2 tiles double it, and so does loading 2
// steps ahead, for up to 8 tokens.
#pragma once

#include "prims/grid.h"
#include "prims/mma.h"
#include "prims/shared.h"

namespace qformer::cuda {

inline constexpr int kStreamWarps = 8;
inline constexpr int kStreamThreads = kStreamWarps * 32;
inline constexpr int kStreamStep = 64;  // columns of k per step of a warp
inline constexpr int kTileRows = 16;    // weight rows of a tile
inline constexpr int kPassTokens = 16;  // tokens whose sums are exchanged at once

using Words = Vec<uint32_t, 4>;  // 16 bytes: eight 16-bit elements

QF_DEVICE int stream_lane() { return static_cast<int>(threadIdx.x) % 32; }
QF_DEVICE int stream_warp() { return static_cast<int>(threadIdx.x) / 32; }

// The weight rows of this lane: rows g and g + 8 of each tile. kAligned: rows begin on 16 bytes and k % 8 == 0.
template <class T, int kTiles, bool kAligned>
class WeightStream {
 public:
  struct Step {
    Words piece[kTiles][2][2];  // [tile][row g, row g + 8][half of the step]
  };

  QF_DEVICE explicit WeightStream(int k) : k_(k) {}
  QF_DEVICE void set_row(int tile, int half, Global<const T> row) { rows_[tile][half] = row; }

  // Zeros past the end of k, also for a step that lies beyond it altogether.
  QF_DEVICE void load(int step, Step& out) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = column_of(step, half);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        out.piece[tile][0][half] = load_piece(rows_[tile][0], column);
        out.piece[tile][1][half] = load_piece(rows_[tile][1], column);
      }
    }
  }

  QF_DEVICE void prefetch(int step) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = column_of(step, half);
      if (column >= k_) return;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        grid_dependency_prefetch(rows_[tile][0], column);
        grid_dependency_prefetch(rows_[tile][1], column);
      }
    }
  }

  QF_DEVICE static int column_of(int step, int half) { return step * kStreamStep + half * 32 + stream_lane() % 4 * 8; }

 private:
  QF_DEVICE Words load_piece(Global<const T> row, int column) const {
    if constexpr (kAligned) {
      if (column >= k_) return Words{{0, 0, 0, 0}};
      return bit_cast<Words>(row.template load_vec_streaming<8>(column));
    } else {
      Vec<T, 8> piece;
#pragma unroll
      for (int e = 0; e < 8; ++e) piece[e] = column + e < k_ ? row.load(column + e) : T{0};
      return bit_cast<Words>(piece);
    }
  }

  Global<const T> rows_[kTiles][2];
  int k_;
};

// Rows of tokens in global memory, on 16 bytes, `columns` (a multiple of 8) of them valid.
template <class T>
class GlobalTokens {
 public:
  QF_DEVICE GlobalTokens(Global<const T> x, int64_t ld, int m, int columns)
      : first_(x + stream_lane() / 4 * ld),
        stride_(static_cast<int>(8 * ld)),
        left_(m - stream_lane() / 4),
        columns_(columns) {}

  // Columns [column, column + 8) of token 8j + lane / 4.
  QF_DEVICE Words load(int j, int column) const {
    if (8 * j >= left_ || column >= columns_) return Words{{0, 0, 0, 0}};
    return bit_cast<Words>(first_.template load_vec<8>(j * stride_ + column));
  }

 private:
  Global<const T> first_;
  int stride_, left_, columns_;
};

// The same in shared memory; rows are zero-filled to whole steps.
template <class T>
class StagedTokens {
 public:
  QF_DEVICE StagedTokens(Shared<const T> x, int pitch, int m)
      : first_(x + stream_lane() / 4 * pitch), left_(m - stream_lane() / 4) {}

  QF_DEVICE Words load(int, int column) const {
    if (left_ <= 0) return Words{{0, 0, 0, 0}};
    return bit_cast<Words>(first_.template load_vec<8>(column));
  }

 private:
  Shared<const T> first_;
  int left_;
};

// Sums of kTiles tiles and 8 * kTokenTiles tokens, spread over a warp as mma leaves them.
template <int kTiles, int kTokenTiles>
struct StreamSums {
  float at[kTiles][kTokenTiles][4];

  QF_DEVICE void clear() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) at[tile][j][e] = 0.0f;
  }
};

template <class T, int kTiles, int kTokenTiles, class Step, class Tokens>
QF_DEVICE void multiply_step(StreamSums<kTiles, kTokenTiles>& sums, const Step& w, const Tokens& tokens, int step) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = step * kStreamStep + half * 32 + stream_lane() % 4 * 8;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      // Keeps the compiler from loading more tokens ahead than there are registers for.
      if (kTokenTiles > 1 && j % 4 == 0) __syncwarp();
      const Words x = tokens.load(j, column);
      const uint32_t low[2] = {x[0], x[1]}, high[2] = {x[2], x[3]};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Words& upper = w.piece[tile][0][half];
        const Words& lower = w.piece[tile][1][half];
        const uint32_t a_low[4] = {upper[0], lower[0], upper[1], lower[1]};
        const uint32_t a_high[4] = {upper[2], lower[2], upper[3], lower[3]};
        mma_m16n8k16<T>(sums.at[tile][j], a_low, low);
        mma_m16n8k16<T>(sums.at[tile][j], a_high, high);
      }
    }
  }
}

// Where the warps of a block leave their sums for each other: [warp][tile][token of the pass][row], tokens kPitch apart
// so that neither side has bank conflicts worth naming.
template <int kTiles>
class SumExchange {
 public:
  static constexpr int kPitch = 20;
  static constexpr int kWarpElements = kTiles * kPassTokens * kPitch;
  static constexpr int kElements = kStreamWarps * kWarpElements;

  QF_DEVICE explicit SumExchange(Shared<float> memory) : memory_(memory) {}

  // Token tile `j` of the pass (0 or 1), one tile of weights.
  QF_DEVICE void put(int tile, int j, const float (&sums)[4]) const {
    const int g = stream_lane() / 4, t = stream_lane() % 4;
    const int at = stream_warp() * kWarpElements + (tile * kPassTokens + 8 * j + 2 * t) * kPitch + g;
    memory_.store(at, sums[0]);
    memory_.store(at + kPitch, sums[1]);
    memory_.store(at + 8, sums[2]);
    memory_.store(at + kPitch + 8, sums[3]);
  }

  // The sum over all of k: the warps in order.
  QF_DEVICE float total(int tile, int token, int row) const {
    const int at = (tile * kPassTokens + token) * kPitch + row;
    float sum = memory_.load(at);
#pragma unroll
    for (int warp = 1; warp < kStreamWarps; ++warp) sum += memory_.load(at + warp * kWarpElements);
    return sum;
  }

 private:
  Shared<float> memory_;
};

// Gives the finished sums to `finish(exchange, first_token)`, 16 tokens at a time; all threads call it, and it may
// store only tokens below m.
template <int kTiles, int kTokenTiles, class Finish>
QF_DEVICE void finish_stream(const StreamSums<kTiles, kTokenTiles>& sums, int m, Shared<float> memory,
                             const Finish& finish) {
  const SumExchange<kTiles> exchange(memory);
#pragma unroll
  for (int first = 0; first < kTokenTiles; first += 2) {
    if (8 * first >= m) break;
    if (first > 0) __syncthreads();
#pragma unroll
    for (int j = first; j < first + 2 && j < kTokenTiles; ++j) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) exchange.put(tile, j - first, sums.at[tile][j]);
    }
    __syncthreads();
    finish(exchange, 8 * first);
  }
}

// Steps a warp loads ahead. More tokens leave fewer registers, and more work to hide a load behind.
QF_HOST_DEVICE constexpr int stream_depth(int token_tiles) { return token_tiles == 1 ? 2 : 1; }

// All steps of this warp. The first kDepth were loaded by the caller, before it staged its tokens.
template <class T, int kTiles, int kTokenTiles, int kDepth, class Stream, class Tokens>
QF_DEVICE void run_stream(StreamSums<kTiles, kTokenTiles>& sums, const Stream& weights,
                          typename Stream::Step (&ahead)[kDepth], const Tokens& tokens, int k) {
  const int steps = (k + kStreamStep - 1) / kStreamStep;
#pragma unroll 1
  for (int first = stream_warp(); first < steps; first += kDepth * kStreamWarps) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int step = first + i * kStreamWarps;
      if (step >= steps) break;
      multiply_step<T>(sums, ahead[i], tokens, step);
      weights.load(step + kDepth * kStreamWarps, ahead[i]);
    }
  }
}

}  // namespace qformer::cuda
