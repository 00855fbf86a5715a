// Softmax and log-softmax over the last axis of f32 rows.
//
// A warp per row up to 1024 columns, a block above, the row in registers up to 16384 columns and read again from L2
// beyond. A row without a finite entry gives zeros (-inf for the logarithm), a NaN spoils its row only. Traffic: x once
// in, y once out.
#include "entry.h"
#include "row_chunks.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

struct SoftmaxArgs {
  QfSoftmax op;
  bool wide_x, wide_y;
};

// shift: the row's maximum, or 0 where there is none; scale: 1 / sum; logarithm: log(sum)
struct Normalizer {
  float shift, scale, logarithm;
};

QF_DEVICE float shift_of(float max) { return max == -INFINITY ? 0.0f : max; }

QF_DEVICE Normalizer normalizer_of(float shift, float sum) {
  if (sum == 0.0f) return {shift, 1.0f, 0.0f};
  return {shift, 1.0f / sum, logf(sum)};
}

// Elements past the end are -inf: they neither raise the maximum nor add to the sum.
QF_DEVICE float max_of(const float (&v)[kChunk], float best) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) best = fmaxf(best, v[j]);
  return best;
}

// Adds exp(v - shift) to `sum`; keeps the exponentials in v unless `log`.
QF_DEVICE float add_exponentials(float (&v)[kChunk], float shift, bool log, float sum) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    const float e = expf(v[j] - shift);
    sum += e;
    if (!log) v[j] = e;
  }
  return sum;
}

QF_DEVICE void finish_chunk(const SoftmaxArgs& a, int64_t row, int64_t i, const Normalizer& by, float (&v)[kChunk]) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) v[j] = a.op.log != 0 ? (v[j] - by.shift) - by.logarithm : v[j] * by.scale;
  store_chunk(Global<float>(a.op.y) + row * a.op.cols, i, a.op.cols, a.wide_y, v);
}

template <int kChunks, bool kWarpPerRow>
QF_KERNEL void QF_LAUNCH_BOUNDS(kWarpPerRow ? 128 : 512, 1) softmax_held(SoftmaxArgs a) {
  RowGroup<kWarpPerRow> group;
  const int64_t row = group.row < a.op.rows ? group.row : a.op.rows - 1;
  const Global<const float> x = Global<const float>(a.op.x) + row * a.op.ldx;
  float held[kChunks][kChunk];
  float max = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t i = static_cast<int64_t>(c * group.size + group.lane) * kChunk;
    load_chunk(x, i, a.op.cols, a.wide_x, held[c], -INFINITY);
    max = max_of(held[c], max);
  }
  const float shift = shift_of(group.max(max));
#pragma unroll
  for (int c = 0; c < kChunks; ++c) sum = add_exponentials(held[c], shift, a.op.log != 0, sum);
  const Normalizer by = normalizer_of(shift, group.sum(sum));
  if (group.row >= a.op.rows) return;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t i = static_cast<int64_t>(c * group.size + group.lane) * kChunk;
    if (i < a.op.cols) finish_chunk(a, row, i, by, held[c]);
  }
}

QF_KERNEL void QF_LAUNCH_BOUNDS(1024, 1) softmax_streamed(SoftmaxArgs a) {
  RowGroup<false> group;
  const Global<const float> x = Global<const float>(a.op.x) + group.row * a.op.ldx;
  const int64_t begin = static_cast<int64_t>(group.lane) * kChunk, step = static_cast<int64_t>(group.size) * kChunk;
  float v[kChunk];
  float max = -INFINITY, sum = 0.0f;
  for (int64_t i = begin; i < a.op.cols; i += step) {
    load_chunk(x, i, a.op.cols, a.wide_x, v, -INFINITY);
    max = max_of(v, max);
  }
  const float shift = shift_of(group.max(max));
  for (int64_t i = begin; i < a.op.cols; i += step) {
    load_chunk(x, i, a.op.cols, a.wide_x, v, -INFINITY);
    sum = add_exponentials(v, shift, true, sum);
  }
  const Normalizer by = normalizer_of(shift, group.sum(sum));
  for (int64_t i = begin; i < a.op.cols; i += step) {
    load_chunk(x, i, a.op.cols, a.wide_x, v, -INFINITY);
    if (a.op.log == 0) add_exponentials(v, shift, false, 0.0f);
    finish_chunk(a, group.row, i, by, v);
  }
}

template <int kChunks>
QfStatus launch_held(const char* op, cudaStream_t stream, const RowShape& shape, const SoftmaxArgs& args) {
  const dim3 grid = grid_of_rows(shape, args.op.rows), block(static_cast<unsigned>(shape.threads));
  if (shape.warp_per_row) {
    return launch(op, stream, softmax_held<kChunks, true>, grid, block, RowGroup<true>::bytes(), args);
  }
  return launch(op, stream, softmax_held<kChunks, false>, grid, block, RowGroup<false>::bytes(), args);
}

}  // namespace

QfStatus softmax(int32_t device, const QfSoftmax* op) {
  if (op->rows == 0 || op->cols == 0) return QF_OK;
  const char* name = op->log != 0 ? "logSoftmax" : "softmax";
  const SoftmaxArgs args = {*op, rows_are_wide(op->x, op->rows, op->ldx), rows_are_wide(op->y, op->rows, op->cols)};
  const RowShape shape = row_shape(op->cols);
  const cudaStream_t stream = context_of(device).stream;
  switch (shape.chunks) {
    case 1:
      return launch_held<1>(name, stream, shape, args);
    case 2:
      return launch_held<2>(name, stream, shape, args);
    case 4:
      return launch_held<4>(name, stream, shape, args);
    default:
      return launch(name, stream, softmax_streamed, dim3(static_cast<unsigned>(op->rows)),
                    dim3(static_cast<unsigned>(shape.threads)), RowGroup<false>::bytes(), args);
  }
}

}  // namespace qformer::cuda
