// linear and gated linear for few rows of 16-bit activations, over the streaming product of decode_stream.cuh.
//
// A block owns 16 or 32 output columns, a gated one 16 columns of gate and up each. With 4096 columns of k a block
// streams 128 KB (gated 256 KB), and the sums' exchange costs 10 KB of shared memory per tile. Up to 8 tokens on sm_90
// (nvcc 13): linear 80 registers, 3 blocks, 96 KB of loads in flight per SM; gated 128, 2 blocks, 128 KB. 9 to 16
// tokens: 128 registers, 2 blocks, 64 KB; 17 to 32: 255, 1 block, 32 KB. HBM at 3.35 TB/s wants 15 KB. No spills from
// sm_75 to sm_120.
#include "decode.h"
#include "decode_epilogue.cuh"
#include "decode_f32.h"
#include "decode_kernel.cuh"

namespace qformer::cuda {
namespace {

struct LinearArgs {
  DecodeTokens tokens;
  DecodeOutput out;
  const void* w;  // [n, k], rows ldw apart
  int64_t ldw;
};

struct GatedArgs {
  DecodeTokens tokens;
  const void* w_gate;  // [n, k], rows ldw apart
  const void* w_up;
  void* y;
  int64_t ldw, ldy;
  int32_t n, activation;
};

// Points tile `tile` of the stream at the 16 rows from `first` on; rows past the last repeat it and are never stored.
template <class T, class Stream>
QF_DEVICE void set_tile(Stream& stream, int tile, const void* w, int64_t ldw, int first, int n) {
  const Global<const T> weights(static_cast<const T*>(w));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + half * 8 + stream_lane() / 4;
    stream.set_row(tile, half, weights + (row < n ? row : n - 1) * ldw);
  }
}

template <class T, int kTiles, int kTokenTiles, bool kStaged, bool kAligned>
QF_KERNEL void QF_LAUNCH_BOUNDS(kStreamThreads, stream_blocks(kTiles, kTokenTiles)) linear_kernel(LinearArgs args) {
  const int first_row = static_cast<int>(blockIdx.x) * kTiles * kTileRows;
  WeightStream<T, kTiles, kAligned> weights(args.tokens.k);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    set_tile<T>(weights, tile, args.w, args.ldw, first_row + tile * kTileRows, args.out.n);
  stream_product<T, kTiles, kTokenTiles, kStaged>(
      args.tokens, weights, [&](const SumExchange<kTiles>& sums, int first_token) {
        const int row = static_cast<int>(threadIdx.x) % kTileRows, token = static_cast<int>(threadIdx.x) / kTileRows;
        if (first_token + token >= args.tokens.m) return;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const int column = first_row + tile * kTileRows + row;
          if (column < args.out.n)
            store_decoded<T>(args.out, first_token + token, column, sums.total(tile, token, row));
        }
      });
}

template <class T, int kTokenTiles, bool kStaged, bool kAligned>
QF_KERNEL void QF_LAUNCH_BOUNDS(kStreamThreads, stream_blocks(2, kTokenTiles)) gated_kernel(GatedArgs args) {
  const int first_row = static_cast<int>(blockIdx.x) * kTileRows;
  WeightStream<T, 2, kAligned> weights(args.tokens.k);
  set_tile<T>(weights, 0, args.w_gate, args.ldw, first_row, args.n);
  set_tile<T>(weights, 1, args.w_up, args.ldw, first_row, args.n);
  stream_product<T, 2, kTokenTiles, kStaged>(args.tokens, weights, [&](const SumExchange<2>& sums, int first_token) {
    const int row = static_cast<int>(threadIdx.x) % kTileRows, token = static_cast<int>(threadIdx.x) / kTileRows;
    const int column = first_row + row;
    if (first_token + token >= args.tokens.m || column >= args.n) return;
    float gate[1] = {sums.total(0, token, row)};
    activate(gate, args.activation);
    const float value = gate[0] * sums.total(1, token, row);
    Global<T>(static_cast<T*>(args.y)).store((first_token + token) * args.ldy + column, from_float<T>(value));
  });
}

bool weights_aligned(const void* w, int64_t ldw, int64_t n, int64_t k) {
  return reinterpret_cast<uintptr_t>(w) % 16 == 0 && (n <= 1 || ldw % 8 == 0) && k % 8 == 0;
}

unsigned blocks_of(int64_t n, int64_t rows) { return static_cast<unsigned>((n + rows - 1) / rows); }

template <class T>
QfStatus launch_linear(DeviceContext& context, const LinearArgs& args, bool staged) {
  const auto launch_shape = [&](auto shape, auto aligned) {
    using Shape = decltype(shape);
    constexpr int kTiles = Shape::kWeightTiles;
    const size_t bytes = stream_shared_bytes<kTiles>() + (Shape::kStagedTokens ? staged_bytes(args.tokens) : 0);
    return launch_dependent("linear", context.stream,
                            linear_kernel<T, kTiles, Shape::kTokens, Shape::kStagedTokens, decltype(aligned)::value>,
                            dim3(blocks_of(args.out.n, kTiles * kTileRows)), dim3(kStreamThreads), bytes, args);
  };
  if (!weights_aligned(args.w, args.ldw, args.out.n, args.tokens.k)) {
    return launch_shape(StreamShape<1, 4, false>{}, std::false_type{});
  }
  return pick_stream_shape<1>(args.tokens.m, staged, [&](auto shape) { return launch_shape(shape, std::true_type{}); });
}

template <class T>
QfStatus launch_gated(DeviceContext& context, const GatedArgs& args, bool staged) {
  const auto launch_shape = [&](auto shape, auto aligned) {
    using Shape = decltype(shape);
    const size_t bytes = stream_shared_bytes<2>() + (Shape::kStagedTokens ? staged_bytes(args.tokens) : 0);
    return launch_dependent("gatedLinear", context.stream,
                            gated_kernel<T, Shape::kTokens, Shape::kStagedTokens, decltype(aligned)::value>,
                            dim3(blocks_of(args.n, kTileRows)), dim3(kStreamThreads), bytes, args);
  };
  if (!weights_aligned(args.w_gate, args.ldw, args.n, args.tokens.k) ||
      !weights_aligned(args.w_up, args.ldw, args.n, args.tokens.k)) {
    return launch_shape(StreamShape<2, 4, false>{}, std::false_type{});
  }
  return pick_stream_shape<2>(args.tokens.m, staged, [&](auto shape) { return launch_shape(shape, std::true_type{}); });
}

}  // namespace

QfStatus decode_linear(int32_t device, const QfLinear* a) {
  constexpr const char* kName = "linear";
  DeviceContext& context = context_of(device);
  if (a->m == 0 || a->n == 0) return QF_OK;
  if (const QfStatus status = check_decode_dtype(context, kName, a->dtype); status != QF_OK) return status;
  DecodeTokens tokens = {a->x,       a->norm_weight, a->ldx, static_cast<int32_t>(a->m), static_cast<int32_t>(a->k),
                         a->norm_eps};
  const bool staged = tokens_are_staged(tokens, a->dtype) && weights_aligned(a->w, a->ldw, a->n, a->k);
  if (!staged) {
    if (const QfStatus status = prepare_tokens(context, kName, a->dtype, &tokens); status != QF_OK) return status;
  }
  const DecodeOutput out = {a->bias,       a->residual,         a->y, a->ldr, a->ldy, static_cast<int32_t>(a->n),
                            a->activation, a->y_dtype == QF_F32};
  if (a->dtype == QF_F32) {
    const bool round_x = a->math == QF_MATH_BF16 && a->w_dtype == QF_BF16;
    return decode_f32(context, kName, {tokens, out, a->w, nullptr, a->ldw, round_x}, a->w_dtype);
  }
  const LinearArgs args = {tokens, out, a->w, a->ldw};
  return a->dtype == QF_F16 ? launch_linear<Half>(context, args, staged)
                            : launch_linear<BFloat16>(context, args, staged);
}

QfStatus decode_gated_linear(int32_t device, const QfGatedLinear* a) {
  constexpr const char* kName = "gatedLinear";
  DeviceContext& context = context_of(device);
  if (a->m == 0 || a->n == 0) return QF_OK;
  if (const QfStatus status = check_decode_dtype(context, kName, a->dtype); status != QF_OK) return status;
  DecodeTokens tokens = {a->x,       a->norm_weight, a->ldx, static_cast<int32_t>(a->m), static_cast<int32_t>(a->k),
                         a->norm_eps};
  const bool staged = tokens_are_staged(tokens, a->dtype) && weights_aligned(a->w_gate, a->ldw, a->n, a->k) &&
                      weights_aligned(a->w_up, a->ldw, a->n, a->k);
  if (!staged) {
    if (const QfStatus status = prepare_tokens(context, kName, a->dtype, &tokens); status != QF_OK) return status;
  }
  if (a->dtype == QF_F32) {
    const bool round_x = a->math == QF_MATH_BF16 && a->w_dtype == QF_BF16;
    const DecodeOutput out = {nullptr, nullptr, a->y, 0, a->ldy, static_cast<int32_t>(a->n), a->activation, true};
    return decode_f32(context, kName, {tokens, out, a->w_gate, a->w_up, a->ldw, round_x}, a->w_dtype);
  }
  const GatedArgs args = {tokens, a->w_gate, a->w_up, a->y, a->ldw, a->ldy, static_cast<int32_t>(a->n), a->activation};
  return a->dtype == QF_F16 ? launch_gated<Half>(context, args, staged) : launch_gated<BFloat16>(context, args, staged);
}

}  // namespace qformer::cuda
