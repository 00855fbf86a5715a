// The kernel that prepares tokens for a decode product, a block per row, and the choice between the three ways.
#include "decode_tokens.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr size_t kStagedBytes = 48 << 10;  // of shared memory, at most

struct PrepareArgs {
  DecodeTokens tokens;
  void* y;  // [m, ldy] dtype, zeros from k on
  int64_t ldy;
  bool wide_x, wide_weight;
};

template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kStreamThreads, 2) prepare_tokens_kernel(PrepareArgs args) {
  SharedMemory shared;
  const Shared<float> warp_sums = shared.take<float>(kStreamWarps);
  grid_dependency_launch();
  grid_dependency_wait();
  const DecodeTokens& tokens = args.tokens;
  const int64_t r = blockIdx.x;
  const Global<const T> x = Global<const T>(static_cast<const T*>(tokens.x)) + r * tokens.ldx;
  const Global<T> y = Global<T>(static_cast<T*>(args.y)) + r * args.ldy;
  float scale = 1.0f;
  if (tokens.norm_weight != nullptr) {
    const float sum = warp_square_sum(x, tokens.k, args.wide_x);
    if (stream_lane() == 0) warp_sums.store(stream_warp(), sum);
    __syncthreads();
    scale = norm_scale(warp_sums, tokens.k, tokens.norm_eps);
  }
  for (int column = static_cast<int>(threadIdx.x) * 8; column < tokens.k; column += kStreamThreads * 8) {
    float v[8];
    load_token_chunk(x, column, tokens.k, args.wide_x, v);
    if (tokens.norm_weight != nullptr) {
      normalise_chunk(v, scale, Global<const float>(tokens.norm_weight), column, tokens.k, args.wide_weight);
    }
    store_token_chunk<T>(y + column, v);
  }
}

bool on_16_bytes(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool rows_on_16_bytes(const DecodeTokens& tokens, int32_t dtype) {
  const int64_t bytes = tokens.ldx * static_cast<int64_t>(qf_dtype_size(dtype));
  return on_16_bytes(tokens.x) && (tokens.m <= 1 || bytes % 16 == 0);
}

bool read_in_place(const DecodeTokens& tokens, int32_t dtype) {
  constexpr int64_t kMostColumns = int64_t{1} << 24;  // so that offsets of tokens fit 32 bits
  return tokens.norm_weight == nullptr && tokens.k % 8 == 0 && tokens.ldx <= kMostColumns &&
         rows_on_16_bytes(tokens, dtype);
}

template <class T>
QfStatus launch_prepare(DeviceContext& context, const char* name, const PrepareArgs& args) {
  return launch_dependent(name, context.stream, prepare_tokens_kernel<T>, dim3(static_cast<unsigned>(args.tokens.m)),
                          dim3(kStreamThreads), shared_bytes<float>(kStreamWarps), args);
}

int64_t prepared_ld(const DecodeTokens& tokens) { return (tokens.k + 7) / 8 * 8; }

}  // namespace

bool tokens_are_staged(const DecodeTokens& tokens, int32_t dtype) {
  if (tokens.norm_weight == nullptr || dtype == QF_F32 || tokens.m > kStagedTokens || tokens.k % 8 != 0) return false;
  if (static_cast<size_t>(tokens.m) * static_cast<size_t>(staged_pitch(tokens.k)) * 2 > kStagedBytes) return false;
  return rows_on_16_bytes(tokens, dtype) && on_16_bytes(tokens.norm_weight);
}

size_t prepared_tokens_bytes(const DecodeTokens& tokens, int32_t dtype) {
  if (read_in_place(tokens, dtype)) return 0;
  return static_cast<size_t>(tokens.m) * static_cast<size_t>(prepared_ld(tokens)) * qf_dtype_size(dtype);
}

QfStatus prepare_tokens(DeviceContext& context, const char* name, int32_t dtype, DecodeTokens* tokens,
                        void* workspace) {
  if (prepared_tokens_bytes(*tokens, dtype) == 0) return QF_OK;
  const PrepareArgs args = {*tokens, workspace, prepared_ld(*tokens), rows_on_16_bytes(*tokens, dtype),
                            on_16_bytes(tokens->norm_weight)};
  const QfStatus status = dtype == QF_F32   ? launch_prepare<float>(context, name, args)
                          : dtype == QF_F16 ? launch_prepare<Half>(context, name, args)
                                            : launch_prepare<BFloat16>(context, name, args);
  tokens->x = workspace;
  tokens->ldx = args.ldy;
  tokens->norm_weight = nullptr;
  return status;
}

QfStatus prepare_tokens(DeviceContext& context, const char* name, int32_t dtype, DecodeTokens* tokens) {
  const size_t bytes = prepared_tokens_bytes(*tokens, dtype);
  if (bytes == 0) return QF_OK;
  void* workspace = nullptr;
  if (const QfStatus status = context.scratch(bytes, &workspace); status != QF_OK) return status;
  return prepare_tokens(context, name, dtype, tokens, workspace);
}

}  // namespace qformer::cuda
