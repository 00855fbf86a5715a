// The Q-Former's cross-attention block for everything the fused kernels do not take: f32 activations, other head sizes.
// Four launches over compact rows, only those that attend: projection, plain attention, projection with residual, norm.
//
// The projection is a plain tiled product: 16 rows by 64 columns per CTA, 32 columns of k at a time through shared
// memory, four outputs a thread, each one chain of fmas along k. Traffic: weights once per 16 rows.

#include <type_traits>

#include "attention_launch.h"
#include "prims/shared.h"
#include "qformer_norm.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kRows = 16, kColumns = 64, kDepth = 32, kThreads = 256;
constexpr int kPitch = kDepth + 1;

struct Projection {
  const void* x;         // rows of T
  const void* w;         // [hidden, hidden] of W
  const float* bias;     // [hidden]
  const void* residual;  // like the block's x, or null
  void* y;               // [rows, hidden] of Y
  int32_t outer_x;       // 1: row r of x is outer_row(r), 0: x is compact
  int32_t round_x;       // 1: x is rounded to bf16 first (QF_MATH_BF16)
};

// Grid: tiles of rows, tiles of columns.
template <class T, class W, class Y>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) project_kernel(QFormerBlock block, Projection p) {
  SharedMemory shared;
  const Shared<float> x_tile = shared.take<float>(kRows * kPitch), w_tile = shared.take<float>(kColumns * kPitch);
  const Global<const T> x(static_cast<const T*>(p.x));
  const Global<const W> w(static_cast<const W*>(p.w));
  const int32_t thread = static_cast<int32_t>(threadIdx.x), hidden = block.hidden;
  const int32_t first_row = static_cast<int32_t>(blockIdx.x) * kRows;
  const int32_t first_column = static_cast<int32_t>(blockIdx.y) * kColumns;
  const int32_t row = first_row + thread / 16, lane = thread % 16;  // columns lane, lane + 16, lane + 32, lane + 48
  float sum[4] = {};
  for (int32_t k = 0; k < hidden; k += kDepth) {
    for (int32_t i = thread; i < kRows * kDepth; i += kThreads) {
      const int32_t r = first_row + i / kDepth, column = k + i % kDepth;
      float value = 0.0f;
      if (r < block.rows && column < hidden) {
        value = to_float(x.load((p.outer_x != 0 ? outer_row(block, r) : r) * hidden + column));
        if (p.round_x != 0) value = to_float(from_float<BFloat16>(value));
      }
      x_tile.store(i / kDepth * kPitch + i % kDepth, value);
    }
    for (int32_t i = thread; i < kColumns * kDepth; i += kThreads) {
      const int32_t n = first_column + i / kDepth, column = k + i % kDepth;
      const bool valid = n < hidden && column < hidden;
      w_tile.store(i / kDepth * kPitch + i % kDepth,
                   valid ? to_float(w.load(static_cast<int64_t>(n) * hidden + column)) : 0.0f);
    }
    __syncthreads();
    for (int32_t d = 0; d < kDepth; ++d) {
      const float value = x_tile.load(thread / 16 * kPitch + d);
#pragma unroll
      for (int n = 0; n < 4; ++n) sum[n] = fmaf(value, w_tile.load((lane + 16 * n) * kPitch + d), sum[n]);
    }
    __syncthreads();
  }
  if (row >= block.rows) return;
  const Global<Y> y = Global<Y>(static_cast<Y*>(p.y)) + static_cast<int64_t>(row) * hidden;
  const Global<const T> residual(static_cast<const T*>(p.residual));
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int32_t column = first_column + lane + 16 * n;
    if (column >= hidden) continue;
    float value = sum[n] + Global<const float>(p.bias).load(column);
    if (residual) value += to_float(residual.load(outer_row(block, row) * hidden + column));
    y.store(column, from_float<Y>(value));
  }
}

// A warp per attending row; the last CTA of the grid copies the others.
template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) finish_kernel(QFormerBlock block) {
  if (blockIdx.x == gridDim.x - 1) return copy_passing_rows<T>(block, 0, 1);
  const int32_t row = static_cast<int32_t>(blockIdx.x) * (kThreads / 32) + static_cast<int32_t>(threadIdx.x) / 32;
  if (row < block.rows) normalize_row<T>(block, row);
}

AttentionProblem attention_of(const QFormerBlock& block) {
  const QfQFormerCrossAttention& a = block.args;
  AttentionProblem p = {};
  p.q = block.q;
  p.k = a.k;
  p.v = a.v;
  p.o = block.context;
  p.q_stride = block.hidden;
  p.k_stride = p.v_stride = a.kv_stride;
  p.batch = static_cast<int32_t>(a.batch);
  p.tokens_q = block.rows;
  p.tokens_k = static_cast<int32_t>(a.batch * a.keys);
  p.heads = p.kv_heads = static_cast<int32_t>(a.heads);
  p.group = 1;
  p.head_dim = static_cast<int32_t>(a.head_dim);
  p.rows_per_batch = p.uniform_q = static_cast<int32_t>(a.num_query);
  p.uniform_k = static_cast<int32_t>(a.keys);
  p.scale = a.scale;
  p.mask = QF_MASK_FULL;
  return p;
}

template <class T, class W>
QfStatus launch_steps(DeviceContext& context, const QFormerBlock& block) {
  const QfQFormerCrossAttention& a = block.args;
  const int32_t round_x = a.math == QF_MATH_BF16 && a.w_dtype == QF_BF16 && a.dtype == QF_F32 ? 1 : 0;
  const dim3 tiles(static_cast<uint32_t>((block.rows + kRows - 1) / kRows),
                   static_cast<uint32_t>((block.hidden + kColumns - 1) / kColumns));
  const size_t shared = shared_bytes<float>(kRows * kPitch) + shared_bytes<float>(kColumns * kPitch);
  const char* op = "qformerCrossAttention";
  const Projection query = {a.x, a.wq, a.bq, nullptr, block.q, 1, round_x};
  QfStatus status = launch(op, context.stream, project_kernel<T, W, T>, tiles, dim3(kThreads), shared, block, query);
  if (status == QF_OK) status = launch_plain_attention(context, op, attention_of(block), a.dtype, a.dtype);
  const Projection output = {block.context, a.wo, a.bo, a.x, block.sum, 0, round_x};
  if (status == QF_OK) {
    status = launch(op, context.stream, project_kernel<T, W, float>, tiles, dim3(kThreads), shared, block, output);
  }
  if (status != QF_OK) return status;
  constexpr int32_t kWarps = kThreads / 32;
  const dim3 ctas(static_cast<uint32_t>((block.rows + kWarps - 1) / kWarps + 1));
  return launch(op, context.stream, finish_kernel<T>, ctas, dim3(kThreads), 0, block);
}

}  // namespace

QfStatus launch_plain_block(DeviceContext& context, const QFormerBlock& block) {
  const QfQFormerCrossAttention& a = block.args;
  if (a.dtype == QF_F16) return launch_steps<Half, Half>(context, block);
  if (a.dtype == QF_BF16) return launch_steps<BFloat16, BFloat16>(context, block);
  if (a.w_dtype == QF_F16) return launch_steps<float, Half>(context, block);
  if (a.w_dtype == QF_BF16) return launch_steps<float, BFloat16>(context, block);
  return launch_steps<float, float>(context, block);
}

}  // namespace qformer::cuda
