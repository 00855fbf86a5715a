// Binary arithmetic with row broadcast, and activation with scale and shift.
//
// A thread takes chunks of 8 elements of one row; dense operands are one long row. f32 in registers, one rounding to
// dtype at the end. Traffic: every operand once in, y once out: bound by memory.
#include "activation.cuh"
#include "entry.h"
#include "row_chunks.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 256;

struct BinaryArgs {
  QfBinaryArgs op;
  bool wide_a, wide_b, wide_y;
};

struct UnaryArgs {
  QfUnary op;
  bool wide_x, wide_y;
};

// Calls body(row, first column) for this thread's chunks: columns along grid x, rows along grid y.
template <class Body>
QF_DEVICE void for_each_chunk(int64_t rows, int64_t cols, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kChunk;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kChunk; i < cols; i += step) {
      body(row, i);
    }
  }
}

dim3 grid_of(int64_t rows, int64_t cols) {
  constexpr int64_t kRun = kThreads * kChunk, kMaxRows = 65535, kMaxRuns = 1 << 20;
  const int64_t runs = (cols + kRun - 1) / kRun;
  return dim3(static_cast<unsigned>(runs < kMaxRuns ? runs : kMaxRuns),
              static_cast<unsigned>(rows < kMaxRows ? rows : kMaxRows));
}

template <int kOp>
QF_DEVICE float combine(float a, float b) {
  if constexpr (kOp == QF_ADD) return a + b;
  if constexpr (kOp == QF_SUB) return a - b;
  if constexpr (kOp == QF_MUL) return a * b;
  return a / b;
}

template <class T, int kOp>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) binary_chunks(BinaryArgs args) {
  const auto& op = args.op;
  const Global<const T> a(static_cast<const T*>(op.a)), b(static_cast<const T*>(op.b));
  const Global<T> y(static_cast<T*>(op.y));
  for_each_chunk(op.rows, op.cols, [&](int64_t row, int64_t i) {
    float left[kChunk], right[kChunk];
    load_chunk(a + row * op.lda, i, op.cols, args.wide_a, left);
    load_chunk(b + row * op.ldb, i, op.cols, args.wide_b, right);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) left[j] = combine<kOp>(left[j], right[j]);
    store_chunk(y + row * op.cols, i, op.cols, args.wide_y, left);
  });
}

template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) unary_chunks(UnaryArgs args) {
  const auto& op = args.op;
  const Global<const T> x(static_cast<const T*>(op.x));
  const Global<T> y(static_cast<T*>(op.y));
  for_each_chunk(op.rows, op.cols, [&](int64_t row, int64_t i) {
    float v[kChunk];
    load_chunk(x + row * op.ldx, i, op.cols, args.wide_x, v);
    activate(v, op.activation);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = fmaf(v[j], op.scale, op.shift);
    store_chunk(y + row * op.cols, i, op.cols, args.wide_y, v);
  });
}

template <class T>
QfStatus launch_binary(int32_t device, QfBinaryArgs op) {
  if (op.rows == 0 || op.cols == 0) return QF_OK;
  if (op.lda == op.cols && op.ldb == op.cols) {
    op.cols = op.lda = op.ldb = op.rows * op.cols;
    op.rows = 1;
  }
  const BinaryArgs args = {op, rows_are_wide(static_cast<const T*>(op.a), op.rows, op.lda),
                           rows_are_wide(static_cast<const T*>(op.b), op.rows, op.ldb),
                           rows_are_wide(static_cast<const T*>(op.y), op.rows, op.cols)};
  const cudaStream_t stream = context_of(device).stream;
  const dim3 grid = grid_of(op.rows, op.cols), block(kThreads);
  switch (op.op) {
    case QF_ADD:
      return launch("add", stream, binary_chunks<T, QF_ADD>, grid, block, 0, args);
    case QF_SUB:
      return launch("sub", stream, binary_chunks<T, QF_SUB>, grid, block, 0, args);
    case QF_MUL:
      return launch("mul", stream, binary_chunks<T, QF_MUL>, grid, block, 0, args);
    default:
      return launch("div", stream, binary_chunks<T, QF_DIV>, grid, block, 0, args);
  }
}

template <class T>
QfStatus launch_unary(int32_t device, QfUnary op) {
  if (op.rows == 0 || op.cols == 0) return QF_OK;
  if (op.ldx == op.cols) {
    op.cols = op.ldx = op.rows * op.cols;
    op.rows = 1;
  }
  const UnaryArgs args = {op, rows_are_wide(static_cast<const T*>(op.x), op.rows, op.ldx),
                          rows_are_wide(static_cast<const T*>(op.y), op.rows, op.cols)};
  return launch("activation", context_of(device).stream, unary_chunks<T>, grid_of(op.rows, op.cols), dim3(kThreads), 0,
                args);
}

}  // namespace

QfStatus binary(int32_t device, const QfBinaryArgs* args) {
  switch (args->dtype) {
    case QF_F32:
      return launch_binary<float>(device, *args);
    case QF_F16:
      return launch_binary<Half>(device, *args);
    case QF_BF16:
      return launch_binary<BFloat16>(device, *args);
    default:
      return fail(QF_UNSUPPORTED, "binary: dtype %s", qf_dtype_name(args->dtype));
  }
}

QfStatus unary(int32_t device, const QfUnary* args) {
  switch (args->dtype) {
    case QF_F32:
      return launch_unary<float>(device, *args);
    case QF_F16:
      return launch_unary<Half>(device, *args);
    case QF_BF16:
      return launch_unary<BFloat16>(device, *args);
    default:
      return fail(QF_UNSUPPORTED, "activation: dtype %s", qf_dtype_name(args->dtype));
  }
}

}  // namespace qformer::cuda
