// Linear layers: checks and dispatch. See QfLinear, QfGatedLinear and QfPatchEmbedding in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {

Tensor linear(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor* residual, const Tensor* norm_weight,
              double norm_eps, int32_t activation, int32_t math, int32_t y_dtype) {
  constexpr const char* kOp = "linear";
  Device& device = common_device(kOp, x, {&w, bias, residual, norm_weight});
  check_activations(kOp, "x", x);
  check_weight(kOp, "w", w, x.dtype);
  const Rows rows = check_input(kOp, x, w.shape[1], w.shape);
  check_modes(kOp, activation, math);
  const Output out = check_output(kOp, x, w.shape[0], bias, residual, y_dtype);
  check_norm(kOp, norm_weight, rows.cols);
  Tensor y = empty_tensor(device, out.shape, out.dtype);
  QfLinear args{};
  args.x = x.data();
  args.w = w.data();
  args.bias = bias != nullptr ? bias->as<float>() : nullptr;
  args.residual = residual != nullptr ? residual->data() : nullptr;
  args.norm_weight = norm_weight != nullptr ? norm_weight->as<float>() : nullptr;
  args.y = y.data();
  args.m = rows.rows;
  args.n = w.shape[0];
  args.k = rows.cols;
  args.ldx = rows.ld;
  args.ldw = row_stride(w);
  args.ldr = out.ldr;
  args.ldy = args.n;
  args.norm_eps = static_cast<float>(norm_eps);
  args.dtype = x.dtype;
  args.w_dtype = w.dtype;
  args.y_dtype = y.dtype;
  args.activation = activation;
  args.math = math;
  launch(device, kOp, device.backend->linear, args, y, x, w, bias != nullptr ? *bias : x,
         residual != nullptr ? *residual : x, norm_weight != nullptr ? *norm_weight : x);
  return y;
}

Tensor gated_linear(const Tensor& x, const Tensor& w_gate, const Tensor& w_up, const Tensor* norm_weight,
                    double norm_eps, int32_t activation, int32_t math) {
  constexpr const char* kOp = "gatedLinear";
  Device& device = common_device(kOp, x, {&w_gate, &w_up, norm_weight});
  check_activations(kOp, "x", x);
  check_weight(kOp, "wGate", w_gate, x.dtype);
  check_weight(kOp, "wUp", w_up, x.dtype);
  check_shape(kOp, "wUp", w_up, w_gate.shape);
  check_dtype(kOp, "wUp", w_up, {w_gate.dtype});
  const Rows rows = check_input(kOp, x, w_gate.shape[1], w_gate.shape);
  check_modes(kOp, activation, math);
  check_norm(kOp, norm_weight, rows.cols);
  if (row_stride(w_gate) != row_stride(w_up))
    fail(ErrorCode::kShape, "gatedLinear: wGate and wUp must have equal row strides");
  Tensor y = empty_tensor(device, with_last(x.shape, w_gate.shape[0]), x.dtype);
  QfGatedLinear args{};
  args.x = x.data();
  args.w_gate = w_gate.data();
  args.w_up = w_up.data();
  args.norm_weight = norm_weight != nullptr ? norm_weight->as<float>() : nullptr;
  args.y = y.data();
  args.m = rows.rows;
  args.n = w_gate.shape[0];
  args.k = rows.cols;
  args.ldx = rows.ld;
  args.ldw = row_stride(w_gate);
  args.ldy = args.n;
  args.norm_eps = static_cast<float>(norm_eps);
  args.dtype = x.dtype;
  args.w_dtype = w_gate.dtype;
  args.activation = activation;
  args.math = math;
  launch(device, kOp, device.backend->gated_linear, args, y, x, w_gate, w_up,
         norm_weight != nullptr ? *norm_weight : x);
  return y;
}

Tensor patch_embedding(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor& class_embedding,
                       const Tensor& positions, int32_t dtype, int32_t math) {
  constexpr const char* kOp = "patchEmbedding";
  Device& device = common_device(kOp, x, {&w, bias, &class_embedding, &positions});
  check_rank(kOp, "pixels", x, 4, "[batch, channels, height, width]");
  check_f32(kOp, "pixels", x);
  check_dense(kOp, "pixels", x);
  check_rank(kOp, "w", w, 4, "[dim, channels, patch, patch]");
  check_range(kOp, "dtype", dtype, QF_F32, QF_BF16);
  check_weight_dtype(kOp, "w", w, dtype);
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
  Tensor y = empty_tensor(device, Shape{x.shape[0] * tokens, dim}, dtype);
  check_activations(kOp, "the result", y);
  QfPatchEmbedding args{};
  args.x = x.as<float>();
  args.w = w.data();
  args.bias = bias != nullptr ? bias->as<float>() : nullptr;
  args.class_embedding = class_embedding.as<float>();
  args.positions = positions.as<float>();
  args.y = y.data();
  args.batch = x.shape[0];
  args.channels = x.shape[1];
  args.height = x.shape[2];
  args.width = x.shape[3];
  args.patch = patch;
  args.dim = dim;
  args.dtype = dtype;
  args.w_dtype = w.dtype;
  args.math = math;
  launch(device, kOp, device.backend->patch_embedding, args, y, x, w, bias != nullptr ? *bias : x, class_embedding,
         positions);
  return y;
}

}  // namespace qformer::ops
