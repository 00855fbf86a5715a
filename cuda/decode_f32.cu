// A warp per weight row (gated: per row of gate and of up), 8 tokens at a time in FMAs.
//
// Lane l takes columns 4l, 4l + 128, 4l + 256, … of the row and of every token, in ascending order, and a butterfly
// adds the lanes: one order per sum, whatever m. Traffic: weights once per 8 tokens, past L1; tokens from L1.
#include "decode_f32.h"

#include "prims/grid.h"
#include "prims/math.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;  // per block
constexpr int kLaneColumns = 4;
constexpr int kSpan = 32 * kLaneColumns;  // columns of a warp per step

// row[column, column + 4) as f32, zeros from k on. kWide: rows begin on 4 elements and k % 4 == 0.
template <class W, bool kWide>
QF_DEVICE void load_weights(Global<const W> row, int column, int k, float (&w)[kLaneColumns]) {
  if constexpr (kWide) {
    const Vec<W, kLaneColumns> values = row.template load_vec_streaming<kLaneColumns>(column);
#pragma unroll
    for (int e = 0; e < kLaneColumns; ++e) w[e] = to_float(values[e]);
  } else {
#pragma unroll
    for (int e = 0; e < kLaneColumns; ++e) w[e] = column + e < k ? to_float(row.load(column + e)) : 0.0f;
  }
}

QF_DEVICE void multiply_add(float (&sums)[kTokens], const float (&w)[kLaneColumns], const Vec<float, 4> (&x)[kTokens]) {
#pragma unroll
  for (int e = 0; e < kLaneColumns; ++e)
#pragma unroll
    for (int i = 0; i < kTokens; ++i) sums[i] = fmaf(w[e], x[i][e], sums[i]);
}

// Tokens past the last repeat it; their sums are dropped.
QF_DEVICE void load_tokens(const DecodeF32Args& args, int first, int column, Vec<float, 4> (&x)[kTokens]) {
  const Global<const float> tokens(static_cast<const float*>(args.tokens.x));
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int token = first + i < args.tokens.m ? first + i : args.tokens.m - 1;
    x[i] = tokens.load_vec<4>(token * args.tokens.ldx + column);
    if (!args.round_x) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) x[i][e] = to_float(from_float<BFloat16>(x[i][e]));
  }
}

template <class W, bool kGated, bool kWide>
QF_KERNEL void QF_LAUNCH_BOUNDS(kWarps * 32, 2) f32_kernel(DecodeF32Args args) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int first_token = static_cast<int>(blockIdx.y) * kTokens;
  if (row >= args.out.n) return;
  const Global<const W> w = Global<const W>(static_cast<const W*>(args.w)) + row * args.ldw;
  const Global<const W> w_up = Global<const W>(static_cast<const W*>(kGated ? args.w_up : args.w)) + row * args.ldw;
  const int k = args.tokens.k;
  float sums[kTokens] = {}, up_sums[kTokens] = {};
#pragma unroll 2
  for (int column = lane * kLaneColumns; column < k; column += kSpan) {
    float weights[kLaneColumns];
    Vec<float, 4> x[kTokens];
    load_weights<W, kWide>(w, column, k, weights);
    load_tokens(args, first_token, column, x);
    multiply_add(sums, weights, x);
    if constexpr (kGated) {
      load_weights<W, kWide>(w_up, column, k, weights);
      multiply_add(up_sums, weights, x);
    }
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    if (first_token + i >= args.tokens.m) break;
    const float sum = warp_sum(sums[i]);
    if constexpr (kGated) {
      float gate[1] = {sum};
      activate(gate, args.out.activation);
      const float value = gate[0] * warp_sum(up_sums[i]);
      const int64_t at = (first_token + i) * args.out.ldy + row;
      if (lane == 0) Global<float>(static_cast<float*>(args.out.y)).store(at, value);
    } else {
      if (lane == 0) store_decoded<float>(args.out, first_token + i, row, sum);
    }
  }
}

template <class W>
QfStatus launch_f32(DeviceContext& context, const char* name, const DecodeF32Args& args) {
  const auto on_vectors = [&](const void* w) {
    return reinterpret_cast<uintptr_t>(w) % (kLaneColumns * sizeof(W)) == 0 && (args.out.n <= 1 || args.ldw % 4 == 0);
  };
  const bool wide = on_vectors(args.w) && on_vectors(args.w_up) && args.tokens.k % kLaneColumns == 0;
  const dim3 grid(static_cast<unsigned>((args.out.n + kWarps - 1) / kWarps),
                  static_cast<unsigned>((args.tokens.m + kTokens - 1) / kTokens));
  const auto launch_kernel = [&](auto kernel) {
    return launch_dependent(name, context.stream, kernel, grid, dim3(kWarps * 32), 0, args);
  };
  if (args.w_up != nullptr)
    return wide ? launch_kernel(f32_kernel<W, true, true>) : launch_kernel(f32_kernel<W, true, false>);
  return wide ? launch_kernel(f32_kernel<W, false, true>) : launch_kernel(f32_kernel<W, false, false>);
}

}  // namespace

QfStatus decode_f32(DeviceContext& context, const char* name, const DecodeF32Args& args, int32_t w_dtype) {
  switch (w_dtype) {
    case QF_F16:
      return launch_f32<Half>(context, name, args);
    case QF_BF16:
      return launch_f32<BFloat16>(context, name, args);
    default:
      return launch_f32<float>(context, name, args);
  }
}

}  // namespace qformer::cuda
