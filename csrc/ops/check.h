// The checks that ops share. Each throws with the op's name in front and says what was needed and what came.
#pragma once

#include <initializer_list>

#include "core/tensor.h"

namespace qformer::ops {

// Evenly spaced rows of a tensor seen as [rows, cols]: the leading axes collapse into one.
struct Rows {
  int64_t rows;
  int64_t cols;
  int64_t ld;
};

[[noreturn]] void fail_dtype(const char* op, const char* name, const Tensor& x, std::initializer_list<int32_t> allowed);
[[noreturn]] void fail_activations(const char* op, const char* name, const Tensor& x);
[[noreturn]] void fail_shape(const char* op, const char* name, const Tensor& x, const Shape& expected);
[[noreturn]] void fail_device(const char* op, const Tensor& x, const Tensor& other);

// DTYPE unless x has one of `allowed`.
inline void check_dtype(const char* op, const char* name, const Tensor& x, std::initializer_list<int32_t> allowed) {
  for (int32_t dtype : allowed) {
    if (x.dtype == dtype) return;
  }
  fail_dtype(op, name, x, allowed);
}
inline void check_f32(const char* op, const char* name, const Tensor& x) { check_dtype(op, name, x, {QF_F32}); }
// DTYPE unless the device of x computes in its dtype (QfBackend.activation_dtypes).
inline void check_activations(const char* op, const char* name, const Tensor& x) {
  if ((x.device().backend->activation_dtypes >> x.dtype & 1) == 0) fail_activations(op, name, x);
}
// DTYPE unless w may be the weight of activations of `dtype`: f32 takes f32, f16 and bf16, the others their own.
void check_weight_dtype(const char* op, const char* name, const Tensor& w, int32_t dtype);
// SHAPE unless x has this rank; `layout` is the wanted shape in words ("[tokens, heads, head_dim]").
void check_rank(const char* op, const char* name, const Tensor& x, int rank, const char* layout);
inline void check_shape(const char* op, const char* name, const Tensor& x, const Shape& expected) {
  if (!(x.shape == expected)) fail_shape(op, name, x, expected);
}
void check_dense(const char* op, const char* name, const Tensor& x);
// A dense vector [n] of one dtype: weights, ids, per-row parameters.
void check_vector(const char* op, const char* name, const Tensor& x, int64_t n, int32_t dtype);
// INVALID_ARGUMENT for a read-only mapping as the target of an in-place op.
void check_writable(const char* op, const char* name, const Tensor& x);
void check_range(const char* op, const char* name, int64_t value, int64_t low, int64_t high);

// SHAPE when the leading axes do not collapse to evenly spaced rows.
Rows rows_of(const char* op, const char* name, const Tensor& x);
// [tokens, heads, head_dim] of an activation dtype with dense tokens: returns the distance between tokens.
int64_t token_stride(const char* op, const char* name, const Tensor& x);

// The weight of a linear op, [n, k] with dense rows, for activations of `dtype`.
void check_weight(const char* op, const char* name, const Tensor& w, int32_t dtype);
// The distance between the rows of such a weight.
int64_t row_stride(const Tensor& w);
// x as rows of k elements; `w` is the shape that asks for them.
Rows check_input(const char* op, const Tensor& x, int64_t k, const Shape& w);
void check_modes(const char* op, int32_t activation, int32_t math);
// A norm prologue's weight, or null.
void check_norm(const char* op, const Tensor* norm_weight, int64_t k);

// The result of a linear op: [..., n] of y_dtype, or of x's dtype where that is negative; a residual has its shape.
struct Output {
  Shape shape;
  int32_t dtype;
  int64_t ldr;
};
Output check_output(const char* op, const Tensor& x, int64_t n, const Tensor* bias, const Tensor* residual,
                    int32_t y_dtype);

// The device of x; DEVICE when another tensor lives elsewhere. Null entries are skipped.
inline Device& common_device(const char* op, const Tensor& x, std::initializer_list<const Tensor*> others) {
  Device& device = x.device();
  for (const Tensor* other : others) {
    if (other != nullptr && &other->device() != &device) fail_device(op, x, *other);
  }
  return device;
}

Shape with_last(const Shape& shape, int64_t last);

}  // namespace qformer::ops
