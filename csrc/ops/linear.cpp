// Linear layers: checks and dispatch. See QfLinear, QfGatedLinear, QfPatchEmbedding and QfLoraMerge in
// backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {
namespace {

void check_weight(const char* op, const char* name, const Tensor& w) {
  check_rank(op, name, w, 2, "[n, k]");
  check_dtype(op, name, w, {QF_F32, QF_F16, QF_BF16});
  if (w.count() > 0 && w.shape[1] > 1 && w.strides[1] != 1) {
    fail(ErrorCode::kShape, "%s: the rows of %s %s are not dense; call contiguous() first", op, name,
         w.shape.text().c_str());
  }
}

int64_t row_stride(const Tensor& w) { return w.shape[0] <= 1 ? w.shape[1] : w.strides[0]; }

Rows check_input(const char* op, const Tensor& x, const Tensor& w) {
  check_f32(op, "x", x);
  const Rows rows = rows_of(op, "x", x);
  if (rows.cols != w.shape[1]) {
    fail(ErrorCode::kShape, "%s: x %s does not fit w %s (last axes must be equal)", op, x.shape.text().c_str(),
         w.shape.text().c_str());
  }
  return rows;
}

void check_modes(const char* op, int32_t activation, int32_t math) {
  check_range(op, "activation", activation, QF_ACT_NONE, QF_ACT_SILU);
  check_range(op, "math", math, QF_MATH_F32, QF_MATH_BF16);
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor* residual, int32_t activation,
              int32_t math) {
  constexpr const char* kOp = "linear";
  Device& device = common_device(kOp, x, {&w, bias, residual});
  check_weight(kOp, "w", w);
  const Rows rows = check_input(kOp, x, w);
  check_modes(kOp, activation, math);
  const int64_t n = w.shape[0];
  const Shape out = with_last(x.shape, n);
  if (bias != nullptr) check_vector(kOp, "bias", *bias, n, QF_F32);
  int64_t ldr = n;
  if (residual != nullptr) {
    check_f32(kOp, "residual", *residual);
    check_shape(kOp, "residual", *residual, out);
    ldr = rows_of(kOp, "residual", *residual).ld;
  }
  Tensor y = empty_tensor(device, out, QF_F32);
  QfLinear args{};
  args.x = x.data();
  args.w = w.data();
  args.bias = bias != nullptr ? bias->as<float>() : nullptr;
  args.residual = residual != nullptr ? residual->as<float>() : nullptr;
  args.y = y.as<float>();
  args.m = rows.rows;
  args.n = n;
  args.k = rows.cols;
  args.ldx = rows.ld;
  args.ldw = row_stride(w);
  args.ldr = ldr;
  args.ldy = n;
  args.x_dtype = x.dtype;
  args.w_dtype = w.dtype;
  args.activation = activation;
  args.math = math;
  launch(device, kOp, device.backend->linear, args, y, x, w, bias != nullptr ? *bias : x,
         residual != nullptr ? *residual : x);
  return y;
}

Tensor gated_linear(const Tensor& x, const Tensor& w_gate, const Tensor& w_up, int32_t activation, int32_t math) {
  constexpr const char* kOp = "gatedLinear";
  Device& device = common_device(kOp, x, {&w_gate, &w_up});
  check_weight(kOp, "wGate", w_gate);
  check_weight(kOp, "wUp", w_up);
  check_shape(kOp, "wUp", w_up, w_gate.shape);
  check_dtype(kOp, "wUp", w_up, {w_gate.dtype});
  const Rows rows = check_input(kOp, x, w_gate);
  check_modes(kOp, activation, math);
  if (row_stride(w_gate) != row_stride(w_up))
    fail(ErrorCode::kShape, "gatedLinear: wGate and wUp must have equal row strides");
  Tensor y = empty_tensor(device, with_last(x.shape, w_gate.shape[0]), QF_F32);
  QfGatedLinear args{};
  args.x = x.data();
  args.w_gate = w_gate.data();
  args.w_up = w_up.data();
  args.y = y.as<float>();
  args.m = rows.rows;
  args.n = w_gate.shape[0];
  args.k = rows.cols;
  args.ldx = rows.ld;
  args.ldw = row_stride(w_gate);
  args.ldy = args.n;
  args.x_dtype = x.dtype;
  args.w_dtype = w_gate.dtype;
  args.activation = activation;
  args.math = math;
  launch(device, kOp, device.backend->gated_linear, args, y, x, w_gate, w_up);
  return y;
}

Tensor lora_merge(const Tensor& w, const Tensor& a, const Tensor& b, double scaling) {
  constexpr const char* kOp = "loraMerge";
  Device& device = common_device(kOp, w, {&a, &b});
  check_weight(kOp, "w", w);
  check_dense(kOp, "w", w);
  check_rank(kOp, "a", a, 2, "[rank, in]");
  check_f32(kOp, "a", a);
  check_dense(kOp, "a", a);
  check_f32(kOp, "b", b);
  check_dense(kOp, "b", b);
  const int64_t rank = a.shape[0];
  check_shape(kOp, "a", a, Shape{rank, w.shape[1]});
  check_shape(kOp, "b", b, Shape{w.shape[0], rank});
  Tensor y = empty_tensor(device, w.shape, w.dtype);
  QfLoraMerge args{};
  args.w = w.data();
  args.a = a.as<float>();
  args.b = b.as<float>();
  args.y = y.data();
  args.out = w.shape[0];
  args.in = w.shape[1];
  args.rank = rank;
  args.scaling = static_cast<float>(scaling);
  args.w_dtype = w.dtype;
  launch(device, kOp, device.backend->lora_merge, args, y, w, a, b);
  return y;
}

Tensor patch_embedding(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor& class_embedding,
                       const Tensor& positions, int32_t math) {
  constexpr const char* kOp = "patchEmbedding";
  Device& device = common_device(kOp, x, {&w, bias, &class_embedding, &positions});
  check_rank(kOp, "pixels", x, 4, "[batch, channels, height, width]");
  check_f32(kOp, "pixels", x);
  check_dense(kOp, "pixels", x);
  check_rank(kOp, "w", w, 4, "[dim, channels, patch, patch]");
  check_dtype(kOp, "w", w, {QF_F32, QF_F16, QF_BF16});
  check_dense(kOp, "w", w);
  check_range(kOp, "math", math, QF_MATH_F32, QF_MATH_BF16);
  const int64_t dim = w.shape[0];
  const int64_t patch = w.shape[2];
  check_range(kOp, "patch", patch, 1, 4096);
  check_range(kOp, "channels", x.shape[1], 1, 4096);
  check_range(kOp, "height", x.shape[2], 1, INT32_MAX);
  check_range(kOp, "width", x.shape[3], 1, INT32_MAX);
  check_shape(kOp, "w", w, Shape{dim, x.shape[1], patch, patch});
  if (x.shape[2] % patch != 0 || x.shape[3] % patch != 0) {
    fail(ErrorCode::kShape, "%s: pixels %s are not a multiple of the patch size %lld", kOp, x.shape.text().c_str(),
         static_cast<long long>(patch));
  }
  const int64_t tokens = 1 + (x.shape[2] / patch) * (x.shape[3] / patch);
  if (bias != nullptr) check_vector(kOp, "bias", *bias, dim, QF_F32);
  check_vector(kOp, "classEmbedding", class_embedding, dim, QF_F32);
  check_f32(kOp, "positions", positions);
  check_shape(kOp, "positions", positions, Shape{tokens, dim});
  check_dense(kOp, "positions", positions);
  Tensor y = empty_tensor(device, Shape{x.shape[0] * tokens, dim}, QF_F32);
  QfPatchEmbedding args{};
  args.x = x.as<float>();
  args.w = w.data();
  args.bias = bias != nullptr ? bias->as<float>() : nullptr;
  args.class_embedding = class_embedding.as<float>();
  args.positions = positions.as<float>();
  args.y = y.as<float>();
  args.batch = x.shape[0];
  args.channels = x.shape[1];
  args.height = x.shape[2];
  args.width = x.shape[3];
  args.patch = patch;
  args.dim = dim;
  args.w_dtype = w.dtype;
  args.math = math;
  launch(device, kOp, device.backend->patch_embedding, args, y, x, w, bias != nullptr ? *bias : x, class_embedding,
         positions);
  return y;
}

}  // namespace qformer::ops
