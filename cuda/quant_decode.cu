// The streaming kernel of quant_linear and its launch. As in decode.cu a block has up to 4 warps: the k-chunks of as
// many units of 16 weight rows as fit, fewer units where blocks would not go round.
//
// Registers on sm_90 up to 8 tokens 96, to 16 107, to 32 168. No spills from sm_75 to sm_120.
#include "quant_decode.h"

#include "decode.h"
#include "decode_plan.h"
#include "gemm_epilogue.cuh"
#include "gemm_plan.h"
#include "quant_stream.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

struct QuantDecodeArgs {
  GemmArgs product;  // tiles_n: units; tokens as below
  DecodeTokens tokens;
  QuantWeights weights;
  int32_t group_shift;
  int32_t chunks;
};

template <class T, int kBits, int kTokenTiles, bool kStaged>
QF_KERNEL void QF_LAUNCH_BOUNDS(kMaxStreamWarps * 32, 3) quant_decode_kernel(QuantDecodeArgs args) {
  const GemmArgs& product = args.product;
  const int warps = static_cast<int>(blockDim.x) / 32, chunk = stream_warp() % args.chunks;
  const int unit = static_cast<int>(blockIdx.x) * (warps / args.chunks) + stream_warp() / args.chunks;
  const int row = min(unit, product.tiles_n - 1) * kGroupRows;
  const QuantRows rows = {Global<const uint8_t>(args.weights.q) + row * (int64_t{product.k} * kBits / 8),
                          Global<const uint16_t>(args.weights.scales) + row * int64_t{product.k >> args.group_shift},
                          product.n - row, args.group_shift};
  const int k_begin = chunk * product.k_chunk;
  const int k_end = unit < product.tiles_n ? min(k_begin + product.k_chunk, product.k) : k_begin;
  const ChunkSums sums =
      quant_stream_product<T, kBits, kTokenTiles, kStaged>(args.tokens, rows, k_begin, k_end, chunk, args.chunks);
  if (unit >= product.tiles_n) return;

  constexpr int kSegments = kGroupRows / kSegment;
  for (int item = chunk * 32 + stream_lane(); item < args.tokens.m * kSegments; item += args.chunks * 32) {
    const int token = item / kSegments, first = item % kSegments * kSegment;
    float values[kSegment];
    sums.total(token, 2 * first, values);  // see ChunkSums::put
    SegmentWriter<T>(product, row + first, false).write(token, values);
  }
}

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

template <class T, int kBits>
QfStatus launch_decode(DeviceContext& context, const char* name, QuantDecodeArgs args) {
  const int tiles = token_tiles(args.tokens.m);
  const StreamPlan plan = plan_stream(context, args.product.tiles_n, args.chunks, [&](int32_t warps, int32_t stages) {
    return quant_stream_shared_bytes(args.tokens, kBits, warps, stages, tiles);
  });
  args.tokens.stages = plan.stages;
  const auto with = [&](auto kernel) {
    return launch_dependent(name, context.stream, kernel, dim3(static_cast<unsigned>(plan.blocks)),
                            dim3(static_cast<unsigned>(plan.warps) * 32), plan.bytes, args);
  };
  if (args.tokens.norm_weight != nullptr) return with(quant_decode_kernel<T, kBits, 1, true>);
  switch (tiles) {
    case 1:
      return with(quant_decode_kernel<T, kBits, 1, false>);
    case 2:
      return with(quant_decode_kernel<T, kBits, 2, false>);
    default:
      return with(quant_decode_kernel<T, kBits, 4, false>);
  }
}

int32_t log2_of(int32_t power) {
  int32_t shift = 0;
  while (power >> shift > 1) ++shift;
  return shift;
}

}  // namespace

bool quant_decode_serves(const DeviceContext& context, const GemmArgs& args, const QuantWeights& weights,
                         int32_t dtype) {
  const bool power = (weights.group & (weights.group - 1)) == 0;
  const bool aligned = decode_serves(args, dtype) && reinterpret_cast<uintptr_t>(weights.q) % 16 == 0;
  if (!aligned || !power || weights.group < kQuantPiece) return false;
  const size_t least =
      quant_stream_shared_bytes(decode_tokens(args), weights.bits, kMaxStreamWarps, 2, token_tiles(args.m));
  return least <= context.shared_memory_per_block_optin;
}

QfStatus run_quant_decode(DeviceContext& context, const char* name, GemmArgs product, const QuantWeights& weights,
                          int32_t dtype) {
  if (const QfStatus status = prepare_gemm(context, name, &product, dtype); status != QF_OK) return status;
  QuantDecodeArgs args{};
  args.product = product;
  args.product.tiles_n = ceil_div(product.n, kGroupRows);
  args.product.k_chunk = gemm_k_chunk(product);
  args.chunks = std::max(ceil_div(product.k, args.product.k_chunk), 1);
  args.tokens = decode_tokens(product);
  args.weights = weights;
  args.group_shift = log2_of(weights.group);
  if (dtype == QF_F16) {
    return weights.bits == 8 ? launch_decode<Half, 8>(context, name, args)
                             : launch_decode<Half, 4>(context, name, args);
  }
  return weights.bits == 8 ? launch_decode<BFloat16, 8>(context, name, args)
                           : launch_decode<BFloat16, 4>(context, name, args);
}

}  // namespace qformer::cuda
