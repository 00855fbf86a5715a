// The streaming kernel of linear and gated linear, and its launch.
//
// A block has up to 4 warps: the k-chunks of as many units of 32 weight rows as fit, fewer units where blocks would not
// go round. A gated unit is 16 gate and the same 16 up rows. The epilogue is the GEMM's, 8 columns of one token a lane.
//
// Registers on sm_90 up to 8 tokens 80, to 16 84, to 32 128, so that shared memory decides how many blocks share a
// multiprocessor: 5 to 8 KB per warp and stage. No spills from sm_75 to sm_120.
#include "decode.h"

#include "decode_plan.h"
#include "gemm_epilogue.cuh"
#include "gemm_plan.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

struct DecodeArgs {
  GemmArgs product;  // tiles_n: units; tokens as below
  DecodeTokens tokens;
  int32_t chunks;
};

template <class T, int kTokenTiles, bool kGated, bool kStaged>
QF_KERNEL void QF_LAUNCH_BOUNDS(kMaxStreamWarps * 32, 3) decode_kernel(DecodeArgs args) {
  constexpr int kColumns = kGated ? kGroupRows : kUnitRows;  // of y, per unit
  const GemmArgs& product = args.product;
  const int warps = static_cast<int>(blockDim.x) / 32, chunk = stream_warp() % args.chunks;
  const int unit = static_cast<int>(blockIdx.x) * (warps / args.chunks) + stream_warp() / args.chunks;
  const int column = min(unit, product.tiles_n - 1) * kColumns, last = product.n - 1;
  const Global<const T> w(static_cast<const T*>(product.w)), up(static_cast<const T*>(product.w_up));
  // The second group may lie behind the last row.
  const int second = kGated ? column : min(column + kGroupRows, last);
  const UnitRows<T> rows = {{w + column * product.ldw, (kGated ? up : w) + second * product.ldw},
                            {last + 1 - column, last + 1 - second}};
  const int k_begin = chunk * product.k_chunk;
  const int k_end = unit < product.tiles_n ? min(k_begin + product.k_chunk, product.k) : k_begin;
  const ChunkSums sums =
      stream_product<T, kTokenTiles, kStaged>(args.tokens, rows, product.ldw, k_begin, k_end, chunk, args.chunks);
  if (unit >= product.tiles_n) return;

  constexpr int kSegments = kColumns / kSegment;
  for (int item = chunk * 32 + stream_lane(); item < args.tokens.m * kSegments; item += args.chunks * 32) {
    const int token = item / kSegments, first = item % kSegments * kSegment;
    float values[kSegment];
    sums.total(token, first, values);
    if constexpr (kGated) {
      float factors[kSegment];
      sums.total(token, kGroupRows + first, factors);
      activate(values, product.activation);
#pragma unroll
      for (int e = 0; e < kSegment; ++e) values[e] *= factors[e];
    }
    SegmentWriter<T>(product, column + first, kGated).write(token, values);
  }
}

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

template <class T, bool kGated>
QfStatus launch_decode(DeviceContext& context, const char* name, DecodeArgs args) {
  const int tiles = token_tiles(args.tokens.m);
  const StreamPlan plan = plan_stream(context, args.product.tiles_n, args.chunks, [&](int32_t warps, int32_t stages) {
    return stream_shared_bytes(args.tokens, warps, stages, tiles);
  });
  args.tokens.stages = plan.stages;
  const auto with = [&](auto kernel) {
    return launch_dependent(name, context.stream, kernel, dim3(static_cast<unsigned>(plan.blocks)),
                            dim3(static_cast<unsigned>(plan.warps) * 32), plan.bytes, args);
  };
  if (args.tokens.norm_weight != nullptr) return with(decode_kernel<T, 1, kGated, true>);
  switch (tiles) {
    case 1:
      return with(decode_kernel<T, 1, kGated, false>);
    case 2:
      return with(decode_kernel<T, 2, kGated, false>);
    default:
      return with(decode_kernel<T, 4, kGated, false>);
  }
}

}  // namespace

bool decode_serves(const GemmArgs& args, int32_t dtype) {
  return dtype != QF_F32 && args.m <= kDecodeRows && gemm_is_aligned(args);
}

bool decode_normalises(const DeviceContext& context, const GemmArgs& args, int32_t dtype) {
  constexpr size_t kMostBytes = 48 << 10;
  const DecodeTokens tokens = decode_tokens(args);
  return decode_serves(args, dtype) && args.m <= kStagedTokens && staged_shared_bytes(tokens) <= kMostBytes &&
         stream_shared_bytes(tokens, kMaxStreamWarps, 2, 1) <= context.shared_memory_per_block_optin &&
         reinterpret_cast<uintptr_t>(args.norm_weight) % 16 == 0;
}

QfStatus run_decode(DeviceContext& context, const char* name, const GemmArgs& product, int32_t dtype) {
  DecodeArgs args{};
  args.product = product;
  const bool gated = product.w_up != nullptr;
  args.product.tiles_n = ceil_div(product.n, gated ? kGroupRows : kUnitRows);
  args.product.k_chunk = gemm_k_chunk(product);
  args.chunks = std::max(ceil_div(product.k, args.product.k_chunk), 1);
  args.tokens = decode_tokens(product);
  if (dtype == QF_F16) {
    return gated ? launch_decode<Half, true>(context, name, args) : launch_decode<Half, false>(context, name, args);
  }
  return gated ? launch_decode<BFloat16, true>(context, name, args)
               : launch_decode<BFloat16, false>(context, name, args);
}

}  // namespace qformer::cuda
