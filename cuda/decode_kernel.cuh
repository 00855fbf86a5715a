// The order of events in a streaming kernel, shared by linear, gated linear and QKV: allow the next kernel to start,
// ask for the first weights, wait for the tokens, load weights into registers, stage the tokens while they travel,
// multiply, exchange sums. And on the host, the choice of instance by the number of tokens.
#pragma once

#include "decode_tokens.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {

// Floats of shared memory that the exchange of sums and the norm take, and bytes of a whole block.
template <int kTiles>
constexpr size_t stream_shared_bytes() {
  return shared_bytes<float>(SumExchange<kTiles>::kElements) + shared_bytes<float>(kStagedTokens * kStreamWarps);
}
inline size_t staged_bytes(const DecodeTokens& tokens) {
  return shared_bytes<uint16_t>(static_cast<size_t>(tokens.m) * static_cast<size_t>(staged_pitch(tokens.k)));
}

// `finish` as in finish_stream. `weights` has its rows set.
template <class T, int kTiles, int kTokenTiles, bool kStaged, class Stream, class Finish>
QF_DEVICE void stream_product(const DecodeTokens& tokens, const Stream& weights, const Finish& finish) {
  SharedMemory shared;
  const Shared<float> exchange = shared.take<float>(SumExchange<kTiles>::kElements);
  const Shared<float> warp_sums = shared.take<float>(kStagedTokens * kStreamWarps);
  const int warp = stream_warp();
  grid_dependency_launch();
  constexpr int kDepth = stream_depth(kTokenTiles);
#pragma unroll
  for (int i = 0; i < kDepth; ++i) weights.prefetch(warp + i * kStreamWarps);
  grid_dependency_wait();

  typename Stream::Step ahead[kDepth];
#pragma unroll
  for (int i = 0; i < kDepth; ++i) weights.load(warp + i * kStreamWarps, ahead[i]);
  StreamSums<kTiles, kTokenTiles> sums;
  sums.clear();
  if constexpr (kStaged) {
    const int pitch = staged_pitch(tokens.k);
    const Shared<T> staged = shared.take<T>(tokens.m * pitch);
    stage_tokens<T>(tokens, staged, warp_sums);
    run_stream<T>(sums, weights, ahead, StagedTokens<T>(staged, pitch, tokens.m), tokens.k);
  } else {
    const Global<const T> x(static_cast<const T*>(tokens.x));
    run_stream<T>(sums, weights, ahead, GlobalTokens<T>(x, tokens.ldx, tokens.m, (tokens.k + 7) / 8 * 8), tokens.k);
  }
  finish_stream(sums, tokens.m, exchange, finish);
}

// How many blocks the registers of a multiprocessor must allow.
constexpr int stream_blocks(int tiles, int token_tiles) {
#if QF_DEVICE_ARCH > 0 && QF_DEVICE_ARCH < 800
  return tiles * token_tiles > 1 ? 1 : 2;  // twice the mma instructions, and their fragments
#endif
  return token_tiles > 2 ? 1 : tiles * token_tiles > 1 ? 2 : 3;
}

template <int kTiles, int kTokenTiles, bool kStaged>
struct StreamShape {
  static constexpr int kWeightTiles = kTiles;
  static constexpr int kTokens = kTokenTiles;
  static constexpr bool kStagedTokens = kStaged;
};

// Calls `run(StreamShape{})` with the instance for this many tokens. One token tile takes kFewTiles tiles of weights
// per block, more tokens two, so that a fragment of tokens read from L1 serves 32 rows.
template <int kFewTiles, class Run>
QfStatus pick_stream_shape(int32_t m, bool staged, const Run& run) {
  if (staged) return run(StreamShape<kFewTiles, 1, true>{});
  if (m <= 8) return run(StreamShape<kFewTiles, 1, false>{});
  if (m <= 16) return run(StreamShape<2, 2, false>{});
  return run(StreamShape<2, 4, false>{});
}

// bf16 needs sm_80, whatever the product.
inline QfStatus check_decode_dtype(const DeviceContext& context, const char* name, int32_t dtype) {
  if (dtype != QF_BF16 || context.compute_capability >= 80) return QF_OK;
  return fail(QF_UNSUPPORTED, "%s: dtype bf16 needs compute capability 8.0, this device has %d.%d", name,
              context.compute_capability / 10, context.compute_capability % 10);
}

}  // namespace qformer::cuda
