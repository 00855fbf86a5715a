// What one warp of the quantised stream does: 16 weight rows and one k-chunk times up to 32 tokens.
//
// As in decode_stream.cuh weights are the A operand of mma.m16n8k16, tokens its n8 sides, and every sum is the GEMM's
// chain. The codes arrive by cp.async as they are stored; a lane takes two neighbours at a time out of shared memory,
// makes floats of them without a conversion instruction (a code in the last bits of 2^23 less 2^23), multiplies by the
// scale in f32 and rounds both to T: the bits of the widened weight. Half as many rows as the 16-bit stream has,
// because unpacking wants a warp on every scheduler: 4096 x 4096 weights give each of 132 multiprocessors four.
//
// Traffic: codes and scales once; a token's chunk once per 16 weight rows, from L2. In flight: stages - 1 steps of 1
// (int4) or 2 KB (int8) of codes per warp.
#pragma once

#include "decode_stream.cuh"
#include "prims/math.h"
#include "prims/packed.h"

namespace qformer::cuda {

inline constexpr int kQuantStep = 128;  // columns of k per stage
inline constexpr int kQuantPiece = 32;  // columns that have one scale; the least group

// Two neighbouring weights as the widened matrix holds them. `codes`: two bytes, or the two halves of one.
template <class T, int kBits>
QF_DEVICE uint32_t widen_pair(uint32_t codes, float scale) {
  constexpr uint32_t kTwo23 = 0x4b000000;  // the bits of 2^23, whose unit is 1
  float low, high;
  if constexpr (kBits == 8) {
    const uint32_t shifted = codes ^ 0x8080u;  // level + 128
    low = bit_cast<float>(byte_permute(shifted, kTwo23, 0x7650)) - (0x1p23f + 128.0f);
    high = bit_cast<float>(byte_permute(shifted, kTwo23, 0x7651)) - (0x1p23f + 128.0f);
  } else {
    low = bit_cast<float>(kTwo23 | (codes & 15u)) - (0x1p23f + 8.0f);
    high = bit_cast<float>(kTwo23 | codes >> 4) - (0x1p23f + 8.0f);
  }
  return pack2<T>(low * scale, high * scale);
}

// The weight rows of a warp.
struct QuantRows {
  Global<const uint8_t> q;        // of the first
  Global<const uint16_t> scales;  // of the first, bf16
  int left;                       // rows from there to the last; ones beyond repeat it and are never stored
  int group_shift;                // 2^group_shift columns have a scale
};

// The scales of a step, spread over the warp: lane l has those of row l % 16 for pieces 2 (l / 16) and the next.
class StepScales {
 public:
  QF_DEVICE void load(const QuantRows& rows, int k, int limit) {
    const int row = min(stream_lane() % kGroupRows, rows.left - 1), groups = limit >> rows.group_shift;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = k + (stream_lane() / kGroupRows * 2 + i) * kQuantPiece;
      bits_[i] = column < limit ? rows.scales.load(row * groups + (column >> rows.group_shift)) : 0u;
    }
  }
  // Makes floats of what `load` asked for. Not before it is needed: this waits for it.
  QF_DEVICE void widen() {
#pragma unroll
    for (uint32_t& bits : bits_) bits <<= 16;
  }
  // Those of rows g and g + 8 for a piece.
  QF_DEVICE void read(int piece, float (&scales)[2]) const {
    const int from = stream_lane() / 4 + piece / 2 * kGroupRows;
    scales[0] = bit_cast<float>(__shfl_sync(kFullWarp, bits_[piece % 2], from));
    scales[1] = bit_cast<float>(__shfl_sync(kFullWarp, bits_[piece % 2], from + 8));
  }

 private:
  uint32_t bits_[2];
};

// A warp's stages: codes, then tokens unless those are staged for the whole block.
template <class T, int kBits, int kTokenTiles, bool kStaged>
class QuantRing {
 public:
  static constexpr int kRowBytes = kQuantStep * kBits / 8;
  static constexpr int kCodeBytes = kGroupRows * kRowBytes;
  static constexpr int kTokenRows = kStaged ? 0 : 8 * kTokenTiles;
  static constexpr int kStageBytes = kCodeBytes + kTokenRows * kQuantStep * 2;

  QF_DEVICE QuantRing(const DecodeTokens& tokens, const QuantRows& rows, Shared<uint8_t> memory)
      : tokens_(tokens), rows_(rows), memory_(memory) {
    const int lane = stream_lane();
    codes_ = code_place(lane / 4, 0) + lane % 4 * (kBits / 4);
    token_ = token_place(lane % 8, lane / 8);
  }

  // Asks for the codes of a step in L2: a lane per row.
  QF_DEVICE void prefetch(int k) const {
    const int row = min(stream_lane() % kGroupRows, rows_.left - 1);
    grid_dependency_prefetch(rows_.q, row * row_bytes() + k * kBits / 8);
  }

  // Copies columns [k, k + kQuantStep) into a stage, zeros past the end of k and of the tokens.
  QF_DEVICE void load(int k, int stage) const {
    const Shared<uint8_t> to = memory_ + stage * kStageBytes;
    const int lane = stream_lane(), code_chunk = lane % kCodeChunks, token_chunk = lane % kTokenChunks;
    const bool codes_valid = k + code_chunk * (128 / kBits) < tokens_.k;
#pragma unroll
    for (int i = 0; i < kGroupRows * kCodeChunks / 32; ++i) {
      const int own = lane / kCodeChunks + i * (32 / kCodeChunks), row = min(own, rows_.left - 1);
      cp_async16(to + code_place(own, code_chunk), rows_.q + (row * row_bytes() + k * kBits / 8 + code_chunk * 16),
                 codes_valid);
    }
    const Shared<T> token_to = (to + kCodeBytes).template as<T>();
    const Global<const T> x(static_cast<const T*>(tokens_.x));
    const bool tokens_valid = k + token_chunk * kChunk < tokens_.k;
#pragma unroll
    for (int i = 0; i < kTokenRows * kTokenChunks / 32; ++i) {
      const int row = lane / kTokenChunks + i * (32 / kTokenChunks);
      cp_async16(token_to + token_place(row, token_chunk), x + (row * tokens_.ldx + k + token_chunk * kChunk),
                 tokens_valid && row < tokens_.m);
    }
  }

  // Columns [16 slice, 16 slice + 16) of the rows, `scales` of rows g and g + 8.
  QF_DEVICE void read_weights(uint32_t (&a)[4], int stage, int slice, const float (&scales)[2]) const {
    const int chunk = slice * kBits / 8, rest = kBits == 8 ? 0 : slice % 2 * 8;
    const Shared<uint8_t> from = memory_ + (stage * kStageBytes + (codes_ ^ chunk * 16) + rest);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int at = r % 2 * 8 * kRowBytes + r / 2 * kBits;
      uint32_t codes;
      if constexpr (kBits == 8)
        codes = from.template as<uint16_t>().load(at / 2);
      else
        codes = from.load(at);
      a[r] = widen_pair<T, kBits>(codes, scales[r % 2]);
    }
  }
  // Columns [32 pair, 32 pair + 32) of tokens 8j to 8j + 7: two B fragments.
  QF_DEVICE void read_tokens(uint32_t (&b)[4], int stage, int j, int pair) const {
    const Shared<T> from = (memory_ + (stage * kStageBytes + kCodeBytes)).template as<T>();
    ldmatrix_x4(b, from + (8 * j * kQuantStep + (token_ ^ pair * 32)));
  }

 private:
  static constexpr int kCodeChunks = kRowBytes / 16, kTokenChunks = kQuantStep / kChunk;  // 16-byte chunks of a row

  // Where a chunk begins, swizzled so that neither the copies nor the reads of 8 rows meet in a bank.
  QF_DEVICE static int code_place(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (kBits == 8 ? row & 7 : row >> 1 & 3)) * 16;
  }
  QF_DEVICE static int token_place(int row, int chunk) { return row * kQuantStep + (chunk ^ (row & 7)) * kChunk; }
  QF_DEVICE int64_t row_bytes() const { return int64_t{tokens_.k} * kBits / 8; }

  const DecodeTokens& tokens_;
  QuantRows rows_;
  Shared<uint8_t> memory_;
  int codes_, token_;  // where the lane's reads of the first slice begin
};

// Columns [k, min(k + kQuantStep, k_end)) of a stage.
template <class T, int kBits, int kTokenTiles, bool kStaged>
QF_DEVICE void multiply_quant_step(float (&sums)[1][kTokenTiles][4],
                                   const QuantRing<T, kBits, kTokenTiles, kStaged>& ring, int stage,
                                   const StepScales& step_scales, int columns, Shared<const T> staged) {
#pragma unroll
  for (int pair = 0; pair < kQuantStep / 32; ++pair) {
    if (pair * 32 >= columns) break;
    uint32_t b[kTokenTiles][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      if constexpr (kStaged)
        ldmatrix_x4(b[j], staged + pair * 32);
      else
        ring.read_tokens(b[j], stage, j, pair);
    }
    float scales[2];
    step_scales.read(pair, scales);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      ring.read_weights(a, stage, 2 * pair + half, scales);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        const uint32_t x[2] = {b[j][2 * half], b[j][2 * half + 1]};
        mma_m16n8k16<T>(sums[0][j], a, x);
      }
    }
  }
}

// As stream_product.
template <class T, int kBits, int kTokenTiles, bool kStaged>
QF_DEVICE ChunkSums quant_stream_product(const DecodeTokens& tokens, const QuantRows& rows, int k_begin, int k_end,
                                         int chunk, int chunks) {
  using Ring = QuantRing<T, kBits, kTokenTiles, kStaged>;
  const int stages = tokens.stages, ring_bytes = stages * Ring::kStageBytes;
  SharedMemory shared;
  const Shared<uint8_t> rings = shared.take<uint8_t>(static_cast<int>(blockDim.x) / 32 * ring_bytes);
  const Ring ring(tokens, rows, rings + stream_warp() * ring_bytes);
  grid_dependency_launch();
  for (int stage = 0; stage < stages - 1; ++stage) {
    if (k_begin + stage * kQuantStep < k_end) ring.prefetch(k_begin + stage * kQuantStep);
  }
  grid_dependency_wait();
  for (int stage = 0; stage < stages - 1; ++stage) {
    if (k_begin + stage * kQuantStep < k_end) ring.load(k_begin + stage * kQuantStep, stage);
    cp_async_commit();
  }
  // Two steps ahead in registers: their lines come from memory once in many steps.
  StepScales now, next, after;
  now.load(rows, k_begin, tokens.k);
  next.load(rows, k_begin + kQuantStep, tokens.k);
  Shared<const T> staged;
  if constexpr (kStaged) {
    const int pitch = staged_pitch(tokens.k);
    const Shared<T> memory = shared.take<T>(tokens.m * pitch);
    stage_tokens<T>(tokens, memory, shared.take<float>(tokens.m * tokens.norm_warps));
    staged = memory + (min(stream_lane() % 8, tokens.m - 1) * pitch + stream_lane() / 8 * 8);
  }
  float sums[1][kTokenTiles][4] = {};
  int stage = 0;
  for (int k = k_begin; k < k_end; k += kQuantStep) {
    after.load(rows, k + 2 * kQuantStep, tokens.k);
    wait_for_stream(stages);
    __syncwarp();  // the stage is there for all lanes, and all have read the one before it
    const int ahead = k + (stages - 1) * kQuantStep;
    if (ahead < k_end) ring.load(ahead, stage == 0 ? stages - 1 : stage - 1);
    cp_async_commit();
    now.widen();
    multiply_quant_step(sums, ring, stage, now, k_end - k, kStaged ? staged + k : staged);
    stage = stage + 1 == stages ? 0 : stage + 1;
    now = next;
    next = after;
  }
  __syncwarp();
  const int unit_warp = stream_warp() - chunk;
  const ChunkSums exchange((rings + unit_warp * ring_bytes).template as<float>(), ring_bytes / 4, chunks);
  exchange.put(chunk, sums);
  __syncthreads();
  return exchange;
}

// Bytes of dynamic shared memory of a block, on the host.
inline size_t quant_stream_shared_bytes(const DecodeTokens& tokens, int bits, int warps, int stages, int token_tiles) {
  const bool staged = tokens.norm_weight != nullptr;
  const int stage = kGroupRows * kQuantStep * bits / 8 + (staged ? 0 : 8 * token_tiles) * kQuantStep * 2;
  const size_t ring = shared_bytes<uint8_t>(static_cast<size_t>(warps * stages * stage));
  return ring + (staged ? staged_shared_bytes(tokens) : 0);
}

}  // namespace qformer::cuda
