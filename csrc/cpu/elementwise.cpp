// Elementwise ops: binary with row broadcast, activation with scale and shift, strided copy with conversion.
// Each splits its elements into runs of at most kRun along the last axis; runs are the jobs, whatever the shape.
// Traffic: every element read once and written once; a copy whose last axis is strided goes through a buffer of 64
// elements.

#include <algorithm>
#include <cstring>

#include "backend/copy_plan.h"
#include "backend/dtype.h"
#include "error.h"
#include "families.h"
#include "kernels.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kRun = 16384;
constexpr int64_t kBuffer = 64;

// Calls body(row, first column, columns) for every run, in parallel.
template <class Body>
void parallel_runs(int64_t rows, int64_t cols, double nanoseconds_per_element, const Body& body) {
  if (rows <= 0 || cols <= 0) return;
  if (rows == 1 && cols <= kRun) return body(0, 0, cols);
  const int64_t runs = (cols + kRun - 1) / kRun;
  const double cost = nanoseconds_per_element * static_cast<double>(std::min(cols, kRun));
  parallel_for(rows * runs, grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % runs * kRun;
      body(i / runs, first, std::min(kRun, cols - first));
    }
  });
}

int64_t row_offset(const CopyPlan& plan, const int64_t* strides, int64_t row) {
  int64_t offset = 0;
  for (int axis = 2; axis >= 0; --axis) {
    offset += row % plan.shape[axis] * strides[axis];
    row /= plan.shape[axis];
  }
  return offset;
}

void copy_run(const void* x, int32_t x_dtype, void* y, int32_t y_dtype, int64_t n) {
  if (x_dtype == y_dtype) {
    std::memcpy(y, x, static_cast<size_t>(n) * qf_dtype_size(x_dtype));
  } else {
    kernels().elementwise.convert(x, x_dtype, y, y_dtype, n);
  }
}

template <class Element>
void move_strided(const void* x, int64_t x_stride, void* y, int64_t y_stride, int64_t n) {
  const auto* from = static_cast<const Element*>(x);
  auto* to = static_cast<Element*>(y);
  for (int64_t i = 0; i < n; ++i) to[i * y_stride] = from[i * x_stride];
}

void move_strided(const void* x, int64_t x_stride, void* y, int64_t y_stride, int64_t n, size_t size) {
  if (size == 4) return move_strided<uint32_t>(x, x_stride, y, y_stride, n);
  if (size == 2) return move_strided<uint16_t>(x, x_stride, y, y_stride, n);
  move_strided<uint8_t>(x, x_stride, y, y_stride, n);
}

void copy_strided_run(const char* x, int64_t x_stride, int32_t x_dtype, char* y, int64_t y_stride, int32_t y_dtype,
                      int64_t n) {
  const size_t x_size = qf_dtype_size(x_dtype), y_size = qf_dtype_size(y_dtype);
  if (x_dtype == y_dtype) return move_strided(x, x_stride, y, y_stride, n, x_size);
  alignas(64) char in[kBuffer * 4], out[kBuffer * 4];
  for (int64_t i = 0; i < n; i += kBuffer) {
    const int64_t count = std::min(kBuffer, n - i);
    move_strided(x + i * x_stride * static_cast<int64_t>(x_size), x_stride, in, 1, count, x_size);
    copy_run(in, x_dtype, out, y_dtype, count);
    move_strided(out, 1, y + i * y_stride * static_cast<int64_t>(y_size), y_stride, count, y_size);
  }
}

bool is_float(int32_t dtype) { return dtype == QF_F32 || dtype == QF_F16 || dtype == QF_BF16; }

}  // namespace

QfStatus binary(int32_t, const QfBinaryArgs* args) {
  const auto& a = *args;
  const auto kernel = kernels().elementwise.binary;
  const auto* left = static_cast<const float*>(a.a);
  const auto* right = static_cast<const float*>(a.b);
  auto* y = static_cast<float*>(a.y);
  const bool dense = a.lda == a.cols && a.ldb == a.cols;
  const int64_t rows = dense ? 1 : a.rows, cols = dense ? a.rows * a.cols : a.cols;
  parallel_runs(rows, cols, 0.5, [&](int64_t row, int64_t first, int64_t n) {
    kernel(left + row * a.lda + first, right + row * a.ldb + first, y + row * a.cols + first, n, a.op);
  });
  return QF_OK;
}

QfStatus unary(int32_t, const QfUnary* args) {
  const auto& a = *args;
  const auto kernel = kernels().elementwise.unary;
  const auto* x = static_cast<const float*>(a.x);
  auto* y = static_cast<float*>(a.y);
  const bool dense = a.ldx == a.cols;
  const int64_t rows = dense ? 1 : a.rows, cols = dense ? a.rows * a.cols : a.cols;
  parallel_runs(rows, cols, 1.0, [&](int64_t row, int64_t first, int64_t n) {
    kernel(x + row * a.ldx + first, y + row * a.cols + first, n, a.activation, a.scale, a.shift);
  });
  return QF_OK;
}

QfStatus copy(int32_t, const QfCopy* args) {
  const auto& a = *args;
  if (a.x_dtype != a.y_dtype && !(is_float(a.x_dtype) && is_float(a.y_dtype))) {
    return fail(QF_UNSUPPORTED, "copy: cannot convert %s to %s", qf_dtype_name(a.x_dtype), qf_dtype_name(a.y_dtype));
  }
  const CopyPlan plan = plan_copy(a);
  const int64_t x_stride = plan.x_strides[3], y_stride = plan.y_strides[3];
  const auto x_size = static_cast<int64_t>(qf_dtype_size(a.x_dtype));
  const auto y_size = static_cast<int64_t>(qf_dtype_size(a.y_dtype));
  const auto* x = static_cast<const char*>(a.x);
  auto* y = static_cast<char*>(a.y);
  const bool dense = x_stride == 1 && y_stride == 1;
  const int64_t rows = plan.shape[0] * plan.shape[1] * plan.shape[2];
  parallel_runs(rows, plan.shape[3], dense ? 0.5 : 2.0, [&](int64_t row, int64_t first, int64_t n) {
    const char* from = x + (row_offset(plan, plan.x_strides, row) + first * x_stride) * x_size;
    char* to = y + (row_offset(plan, plan.y_strides, row) + first * y_stride) * y_size;
    if (dense) {
      copy_run(from, a.x_dtype, to, a.y_dtype, n);
    } else {
      copy_strided_run(from, x_stride, a.x_dtype, to, y_stride, a.y_dtype, n);
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
