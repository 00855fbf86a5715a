// The weight-streaming product of few tokens: what one warp does, in the GEMM's order of summation.
//
// A warp owns a unit, two groups of 16 weight rows, and one k-chunk. Weights are the A operand of mma.m16n8k16 and up
// to 32 tokens its n8 sides: products commute, and k keeps its place in the instruction, so every sum is the chain that
// the GEMM forms with the operands the other way round. Warps of a block that hold the chunks of one unit leave their
// sums in shared memory, where they are added in ascending order. No barrier stands between a warp's first load and its
// last product.
//
// Traffic: each weight once; a token's chunk once per 32 weight rows, from L2. In flight: stages - 1 steps of 4 KB of
// weights per warp, 20 KB with 6 stages. HBM at 3.35 TB/s and 1 µs wants 25 KB per multiprocessor; 4096 × 4096 weights
// give each of 132 two warps.
#pragma once

#include "gemm.h"
#include "prims/copy_async.h"
#include "prims/grid.h"
#include "prims/mma.h"
#include "row_chunks.cuh"

namespace qformer::cuda {

inline constexpr int kStreamStep = 64;  // columns of k per stage
inline constexpr int kGroupRows = 16;   // weight rows of an mma
inline constexpr int kUnitRows = 2 * kGroupRows;
inline constexpr int kMaxStreamWarps = 4;  // of a block
inline constexpr int kMaxStages = 6;
inline constexpr int kStagedTokens = 4;  // most tokens that a block normalises itself

// Part of a kernel's parameters.
struct DecodeTokens {
  const void* x;             // [m, k], rows ldx apart
  const float* norm_weight;  // [k]; tokens are RMS-normalised on the way in. Or null
  int64_t ldx;
  int32_t m, k;
  int32_t norm_warps;  // warps that the op rms_norm gives a row: it fixes the order of the squares
  float norm_eps;
  int32_t stages;
};

// The weight rows of a unit, as groups of consecutive ones.
template <class T>
struct UnitRows {
  Global<const T> first[2];
  int left[2];  // rows from there to the last; ones beyond repeat it and are never stored
};

// Columns from one token to the next where tokens are staged: whole steps, and 16 bytes more for the banks.
QF_HOST_DEVICE constexpr int staged_pitch(int k) { return (k + kStreamStep - 1) / kStreamStep * kStreamStep + 8; }

QF_DEVICE int stream_lane() { return static_cast<int>(threadIdx.x) % 32; }
QF_DEVICE int stream_warp() { return static_cast<int>(threadIdx.x) / 32; }

// Where 16-byte chunk `chunk` of a row of a stage begins, in elements; the swizzle spares ldmatrix bank conflicts.
QF_DEVICE int stage_offset(int row, int chunk) { return row * kStreamStep + (chunk ^ (row & 7)) * 8; }

// The sums of a unit and 8 * kTokenTiles tokens, spread over the warp as mma leaves them.
template <int kTokenTiles>
using UnitSums = float[2][kTokenTiles][4];

// A warp's stages of weights and, unless they are staged for the whole block, of tokens.
template <class T, int kTokenTiles, bool kStaged>
class StreamRing {
 public:
  static constexpr int kTokenRows = kStaged ? 0 : 8 * kTokenTiles;
  static constexpr int kStageElements = (kUnitRows + kTokenRows) * kStreamStep;

  QF_DEVICE StreamRing(const DecodeTokens& tokens, const UnitRows<T>& rows, int64_t ldw, Shared<T> memory)
      : tokens_(tokens), rows_(rows), ldw_(static_cast<int>(ldw)), memory_(memory) {
    const int lane = stream_lane(), chunk = lane % 8;
    row_ = lane / 8;
    column_ = chunk * 8;
    destination_ = stage_offset(row_, chunk);
    weights_ = stage_offset(lane % 16, lane / 16);
    token_ = stage_offset(lane % 8, lane / 8);
  }

  // Asks for the weights of a step in L2: a lane per row.
  QF_DEVICE void prefetch(int k) const {
    const int group = stream_lane() / kGroupRows, row = stream_lane() % kGroupRows;
    const Global<const T> first = group == 0 ? rows_.first[0] : rows_.first[1];
    grid_dependency_prefetch(first, min(row, (group == 0 ? rows_.left[0] : rows_.left[1]) - 1) * ldw_ + k);
  }

  // Copies columns [k, k + kStreamStep) into a stage, zeros past the end of k and of the tokens.
  QF_DEVICE void load(int k, int stage) const {
    const Shared<T> to = memory_ + stage * kStageElements;
    const bool valid = k + column_ < tokens_.k;
#pragma unroll
    for (int i = 0; i < kUnitRows / 4; ++i) {
      const int group = i / 4, row = min(row_ + i % 4 * 4, rows_.left[group] - 1);
      cp_async16(to + place(i), rows_.first[group] + (row * ldw_ + k + column_), valid);
    }
    const Global<const T> x(static_cast<const T*>(tokens_.x));
#pragma unroll
    for (int i = 0; i < kTokenRows / 4; ++i) {
      const int row = row_ + i * 4;
      cp_async16(to + (kUnitRows * kStreamStep + place(i)), x + (row * tokens_.ldx + k + column_),
                 valid && row < tokens_.m);
    }
  }

  // Columns [16 slice, 16 slice + 16) of a group.
  QF_DEVICE void read_weights(uint32_t (&a)[4], int stage, int group, int slice) const {
    ldmatrix_x4(a, memory_ + (stage * kStageElements + group * kGroupRows * kStreamStep + (weights_ ^ slice * 16)));
  }
  // Columns [32 pair, 32 pair + 32) of tokens 8j to 8j + 7: two B fragments.
  QF_DEVICE void read_tokens(uint32_t (&b)[4], int stage, int j, int pair) const {
    ldmatrix_x4(b, memory_ + (stage * kStageElements + (kUnitRows + 8 * j) * kStreamStep + (token_ ^ pair * 32)));
  }

 private:
  // Where the lane's i-th copy of a matrix goes: rows 4 apart, whose swizzles differ in one bit.
  QF_DEVICE int place(int i) const { return i * 4 * kStreamStep + (destination_ ^ i % 2 * 32); }

  const DecodeTokens& tokens_;
  UnitRows<T> rows_;
  int ldw_;
  Shared<T> memory_;
  int row_, column_, destination_;  // of the lane's first copy
  int weights_, token_;             // where the lane's rows of the first ldmatrix begin
};

// At most stages - 2 groups stay pending: the oldest stage has landed.
QF_DEVICE void wait_for_stream(int stages) {
  switch (stages) {
    case 6:
      return cp_async_wait<4>();
    case 5:
      return cp_async_wait<3>();
    case 4:
      return cp_async_wait<2>();
    case 3:
      return cp_async_wait<1>();
    default:
      return cp_async_wait<0>();
  }
}

// Normalises the tokens, k % 8 == 0 and all on 16 bytes, into `staged` with zeros behind k; `squares` holds
// m * norm_warps. The bits are those of the op rms_norm: warp v of its norm_warps adds the chunks of
// 8 columns v * 32 + lane, and those norm_warps * 32 further, then the warps are added in order. Ends with a barrier.
template <class T>
QF_DEVICE void stage_tokens(const DecodeTokens& tokens, Shared<T> staged, Shared<float> squares) {
  constexpr int kAtOnce = 4;  // sums of a warp whose loads are in flight together
  const Global<const T> x(static_cast<const T*>(tokens.x));
  const Global<const float> weight(tokens.norm_weight);
  const int warps = static_cast<int>(blockDim.x) / 32, sums = tokens.m * tokens.norm_warps;
  for (int first = stream_warp(); first < sums; first += kAtOnce * warps) {
    float square[kAtOnce] = {};
    for (int span = 0; span < tokens.k; span += tokens.norm_warps * 32 * kChunk) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int sum = first + i * warps, column = span + (sum % tokens.norm_warps * 32 + stream_lane()) * kChunk;
        if (sum >= sums || column >= tokens.k) continue;
        const Vec<T, kChunk> v = x.template load_vec<kChunk>(sum / tokens.norm_warps * tokens.ldx + column);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) square[i] = fmaf(to_float(v[e]), to_float(v[e]), square[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float sum = warp_sum(square[i]);
      if (first + i * warps < sums && stream_lane() == 0) squares.store(first + i * warps, sum);
    }
  }
  __syncthreads();
  float scale[kStagedTokens];
#pragma unroll
  for (int r = 0; r < kStagedTokens; ++r) {
    float sum = 0.0f;
    for (int warp = 0; r < tokens.m && warp < tokens.norm_warps; ++warp) {
      sum += squares.load(r * tokens.norm_warps + warp);
    }
    scale[r] = 1.0f / sqrtf(sum / static_cast<float>(tokens.k) + tokens.norm_eps);
  }
  const int pitch = staged_pitch(tokens.k);
  for (int column = static_cast<int>(threadIdx.x) * kChunk; column < pitch; column += warps * 32 * kChunk) {
    Vec<T, kChunk> v[kStagedTokens] = {};  // of all tokens, so that their loads are in flight together
    float w[kChunk] = {};
    if (column < tokens.k) {
      load_chunk(weight, column, tokens.k, true, w);
#pragma unroll
      for (int r = 0; r < kStagedTokens; ++r) {
        if (r < tokens.m) v[r] = x.template load_vec<kChunk>(r * tokens.ldx + column);
      }
    }
#pragma unroll
    for (int r = 0; r < kStagedTokens; ++r) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) v[r][e] = from_float<T>(to_float(v[r][e]) * scale[r] * w[e]);
      if (r < tokens.m) staged.template store_vec<kChunk>(r * pitch + column, v[r]);
    }
  }
  __syncthreads();
}

// One step of a warp. `staged`: where token 0 has the step's first column, unused where tokens are in the ring.
template <class T, int kTokenTiles, bool kStaged>
QF_DEVICE void multiply_step(UnitSums<kTokenTiles>& sums, const StreamRing<T, kTokenTiles, kStaged>& ring, int stage,
                             Shared<const T> staged) {
#pragma unroll
  for (int pair = 0; pair < kStreamStep / 32; ++pair) {
    uint32_t b[kTokenTiles][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      if constexpr (kStaged)
        ldmatrix_x4(b[j], staged + pair * 32);
      else
        ring.read_tokens(b[j], stage, j, pair);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][4];
      ring.read_weights(a[0], stage, 0, 2 * pair + half);
      ring.read_weights(a[1], stage, 1, 2 * pair + half);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        const uint32_t x[2] = {b[j][2 * half], b[j][2 * half + 1]};
        mma_m16n8k16<T>(sums[0][j], a[0], x);
        mma_m16n8k16<T>(sums[1][j], a[1], x);
      }
    }
  }
}

// The chunks' sums of a unit in shared memory: [chunk][token][row of the unit; of one group 0-7 and 16-23], tokens
// kPitch apart so that neither side has bank conflicts.
class ChunkSums {
 public:
  static constexpr int kPitch = kUnitRows + 4;

  // `memory`: of the unit's first chunk; the others follow `stride` floats apart.
  QF_DEVICE ChunkSums(Shared<float> memory, int stride, int chunks)
      : memory_(memory), stride_(stride), chunks_(chunks) {}

  template <int kGroups, int kTokenTiles>
  QF_DEVICE void put(int chunk, const float (&sums)[kGroups][kTokenTiles][4]) const {
    // A single group has its second half where the banks of eight readers do not meet.
    constexpr int kHalf = kGroups == 1 ? 16 : 8;
    const int g = stream_lane() / 4, t = stream_lane() % 4;
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = 8 * j + 2 * t + e % 2, row = group * kGroupRows + g + e / 2 * kHalf;
          memory_.store(chunk * stride_ + token * kPitch + row, sums[group][j][e]);
        }
  }

  QF_DEVICE float total(int token, int row) const {
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks_; ++chunk) sum += memory_.load(chunk * stride_ + token * kPitch + row);
    return sum;
  }
  // The totals of rows [row, row + 8) for one token: the chunks in ascending order.
  QF_DEVICE void total(int token, int row, float (&v)[8]) const {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = 0.0f;
    for (int chunk = 0; chunk < chunks_; ++chunk) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const Vec<float, 4> quad = memory_.template load_vec<4>(chunk * stride_ + token * kPitch + row + part * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[part * 4 + e] += quad[e];
      }
    }
  }

 private:
  Shared<float> memory_;
  int stride_, chunks_;
};

// The whole of it: columns [k_begin, k_end) of this warp's unit times the tokens, then the exchange. All warps of the
// block call it; the result may be read by all of them. `chunk` of `chunks` is this warp's; those of a unit are
// consecutive warps.
template <class T, int kTokenTiles, bool kStaged>
QF_DEVICE ChunkSums stream_product(const DecodeTokens& tokens, const UnitRows<T>& rows, int64_t ldw, int k_begin,
                                   int k_end, int chunk, int chunks) {
  using Ring = StreamRing<T, kTokenTiles, kStaged>;
  const int stages = tokens.stages, ring_elements = stages * Ring::kStageElements;
  SharedMemory shared;
  const Shared<T> rings = shared.take<T>(static_cast<int>(blockDim.x) / 32 * ring_elements);
  const Ring ring(tokens, rows, ldw, rings + stream_warp() * ring_elements);
  grid_dependency_launch();
  for (int stage = 0; stage < stages - 1; ++stage) {
    if (k_begin + stage * kStreamStep < k_end) ring.prefetch(k_begin + stage * kStreamStep);
  }
  grid_dependency_wait();
  for (int stage = 0; stage < stages - 1; ++stage) {
    if (k_begin + stage * kStreamStep < k_end) ring.load(k_begin + stage * kStreamStep, stage);
    cp_async_commit();
  }
  Shared<const T> staged;
  if constexpr (kStaged) {
    const int pitch = staged_pitch(tokens.k);
    const Shared<T> memory = shared.take<T>(tokens.m * pitch);
    stage_tokens<T>(tokens, memory, shared.take<float>(tokens.m * tokens.norm_warps));
    staged = memory + (min(stream_lane() % 8, tokens.m - 1) * pitch + stream_lane() / 8 * 8);
  }
  UnitSums<kTokenTiles> sums = {};
  int stage = 0;
  for (int k = k_begin; k < k_end; k += kStreamStep) {
    wait_for_stream(stages);
    __syncwarp();  // the stage is there for all lanes, and all have read the one before it
    const int ahead = k + (stages - 1) * kStreamStep;
    if (ahead < k_end) ring.load(ahead, stage == 0 ? stages - 1 : stage - 1);
    cp_async_commit();
    multiply_step<T, kTokenTiles, kStaged>(sums, ring, stage, kStaged ? staged + k : staged);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
  __syncwarp();
  const int unit_warp = stream_warp() - chunk;
  const ChunkSums exchange((rings + unit_warp * ring_elements).template as<float>(), ring_elements / 2, chunks);
  exchange.put(chunk, sums);
  __syncthreads();
  return exchange;
}

// Bytes of dynamic shared memory of a block, on the host: of staged tokens, and of everything.
inline size_t staged_shared_bytes(const DecodeTokens& tokens) {
  if (tokens.norm_weight == nullptr) return 0;
  return shared_bytes<uint16_t>(static_cast<size_t>(tokens.m * staged_pitch(tokens.k))) +
         shared_bytes<float>(static_cast<size_t>(tokens.m * tokens.norm_warps));
}
inline size_t stream_shared_bytes(const DecodeTokens& tokens, int warps, int stages, int token_tiles) {
  const int rows = kUnitRows + (tokens.norm_weight != nullptr ? 0 : 8 * token_tiles);
  return shared_bytes<uint16_t>(static_cast<size_t>(warps * stages * rows * kStreamStep)) + staged_shared_bytes(tokens);
}

}  // namespace qformer::cuda
