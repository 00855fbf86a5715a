#include "ops/check.h"

namespace qformer::ops {

void fail_dtype(const char* op, const char* name, const Tensor& x, std::initializer_list<int32_t> allowed) {
  std::string names;
  for (int32_t dtype : allowed) names += (names.empty() ? "" : " or ") + std::string(qf_dtype_name(dtype));
  fail(ErrorCode::kDtype, "%s: %s must be %s, got %s", op, name, names.c_str(), qf_dtype_name(x.dtype));
}

void fail_activations(const char* op, const char* name, const Tensor& x) {
  const int32_t known = x.device().backend->activation_dtypes;
  if (known == 1 << QF_F32) fail_dtype(op, name, x, {QF_F32});
  if ((known >> QF_BF16 & 1) == 0) fail_dtype(op, name, x, {QF_F32, QF_F16});
  fail_dtype(op, name, x, {QF_F32, QF_F16, QF_BF16});
}

void fail_shape(const char* op, const char* name, const Tensor& x, const Shape& expected) {
  fail(ErrorCode::kShape, "%s: %s must be %s, got %s", op, name, expected.text().c_str(), x.shape.text().c_str());
}

void fail_device(const char* op, const Tensor& x, const Tensor& other) {
  fail(ErrorCode::kDevice, "%s: tensors are on different devices (%s and %s)", op, x.device().name.c_str(),
       other.device().name.c_str());
}

void check_weight_dtype(const char* op, const char* name, const Tensor& w, int32_t dtype) {
  if (dtype != QF_F32) return check_dtype(op, name, w, {dtype});
  check_dtype(op, name, w, {QF_F32, QF_F16, QF_BF16});
}

void check_rank(const char* op, const char* name, const Tensor& x, int rank, const char* layout) {
  if (x.rank() == rank) return;
  fail(ErrorCode::kShape, "%s: %s must be %s, got %s", op, name, layout, x.shape.text().c_str());
}

void check_dense(const char* op, const char* name, const Tensor& x) {
  if (x.is_dense()) return;
  fail(ErrorCode::kShape, "%s: %s %s is a strided view; call contiguous() first", op, name, x.shape.text().c_str());
}

void check_vector(const char* op, const char* name, const Tensor& x, int64_t n, int32_t dtype) {
  check_dtype(op, name, x, {dtype});
  check_shape(op, name, x, Shape{n});
  check_dense(op, name, x);
}

void check_writable(const char* op, const char* name, const Tensor& x) {
  if (!x.storage->read_only) return;
  fail(ErrorCode::kInvalidArgument, "%s: %s is a read-only file mapping", op, name);
}

void check_range(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::kInvalidArgument, "%s: %s must be between %lld and %lld, got %lld", op, name,
       static_cast<long long>(low), static_cast<long long>(high), static_cast<long long>(value));
}

Rows rows_of(const char* op, const char* name, const Tensor& x) {
  const int rank = x.rank();
  if (rank == 0) fail(ErrorCode::kShape, "%s: %s must have at least one axis, got []", op, name);
  const int64_t cols = x.shape[rank - 1];
  bool even = cols <= 1 || x.strides[rank - 1] == 1;
  int64_t rows = 1;
  int64_t ld = cols;
  bool first = true;
  for (int axis = rank - 2; axis >= 0; --axis) {
    if (x.shape[axis] == 1) continue;
    if (first) {
      ld = x.strides[axis];
      first = false;
    } else {
      even = even && x.strides[axis] == ld * rows;
    }
    rows *= x.shape[axis];
  }
  if (rows == 0 || cols == 0) return {rows, cols, cols};
  if (!even) {
    fail(ErrorCode::kShape, "%s: the rows of %s %s are not evenly spaced; call contiguous() first", op, name,
         x.shape.text().c_str());
  }
  return {rows, cols, ld};
}

int64_t token_stride(const char* op, const char* name, const Tensor& x) {
  check_rank(op, name, x, 3, "[tokens, heads, head_dim]");
  check_activations(op, name, x);
  const bool dense_head = x.shape[2] <= 1 || x.strides[2] == 1;
  const bool dense_token = x.shape[1] <= 1 || x.strides[1] == x.shape[2];
  if (x.count() > 0 && !(dense_head && dense_token)) {
    fail(ErrorCode::kShape, "%s: the heads of %s %s are not dense; call contiguous() first", op, name,
         x.shape.text().c_str());
  }
  return x.shape[0] <= 1 ? x.shape[1] * x.shape[2] : x.strides[0];
}

void check_weight(const char* op, const char* name, const Tensor& w, int32_t dtype) {
  check_rank(op, name, w, 2, "[n, k]");
  check_weight_dtype(op, name, w, dtype);
  if (w.count() > 0 && w.shape[1] > 1 && w.strides[1] != 1) {
    fail(ErrorCode::kShape, "%s: the rows of %s %s are not dense; call contiguous() first", op, name,
         w.shape.text().c_str());
  }
}

int64_t row_stride(const Tensor& w) { return w.shape[0] <= 1 ? w.shape[1] : w.strides[0]; }

Rows check_input(const char* op, const Tensor& x, int64_t k, const Shape& w) {
  const Rows rows = rows_of(op, "x", x);
  if (rows.cols != k) {
    fail(ErrorCode::kShape, "%s: x %s does not fit w %s (last axes must be equal)", op, x.shape.text().c_str(),
         w.text().c_str());
  }
  return rows;
}

void check_modes(const char* op, int32_t activation, int32_t math) {
  check_range(op, "activation", activation, QF_ACT_NONE, QF_ACT_SILU);
  check_range(op, "math", math, QF_MATH_F32, QF_MATH_BF16);
}

void check_norm(const char* op, const Tensor* norm_weight, int64_t k) {
  if (norm_weight != nullptr) check_vector(op, "normWeight", *norm_weight, k, QF_F32);
}

Output check_output(const char* op, const Tensor& x, int64_t n, const Tensor* bias, const Tensor* residual,
                    int32_t y_dtype) {
  const int32_t dtype = y_dtype < 0 ? x.dtype : y_dtype;
  if (dtype != x.dtype && dtype != QF_F32) {
    const char* also = x.dtype == QF_F32 ? "" : " or f32";
    fail(ErrorCode::kDtype, "%s: the result of %s activations must be %s%s, got %s", op, qf_dtype_name(x.dtype),
         qf_dtype_name(x.dtype), also, qf_dtype_name(dtype));
  }
  Output out{with_last(x.shape, n), dtype, n};
  if (bias != nullptr) check_vector(op, "bias", *bias, n, QF_F32);
  if (residual == nullptr) return out;
  check_dtype(op, "residual", *residual, {dtype});
  check_shape(op, "residual", *residual, out.shape);
  out.ldr = rows_of(op, "residual", *residual).ld;
  return out;
}

Shape with_last(const Shape& shape, int64_t last) {
  Shape out = shape;
  out[shape.rank() - 1] = last;
  return out;
}

}  // namespace qformer::ops
