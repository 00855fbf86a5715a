// Group-quantised weights. See QfQuantize and QfQuantLinear in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {

Quantized quantize(const Tensor& w, int64_t bits, int64_t group) {
  constexpr const char* kOp = "quantize";
  check_weight(kOp, "w", w, QF_F32);
  if (bits != 8 && bits != 4)
    fail(ErrorCode::kInvalidArgument, "quantize: bits must be 8 or 4, got %lld", static_cast<long long>(bits));
  const int64_t n = w.shape[0], k = w.shape[1];
  check_range(kOp, "group", group, 2, INT32_MAX);
  if (group % 2 != 0 || k % group != 0) {
    fail(ErrorCode::kShape, "quantize: group must be even and divide the %lld columns of w, got %lld",
         static_cast<long long>(k), static_cast<long long>(group));
  }
  Quantized result{empty_tensor(w.device(), Shape{n, k * bits / 8}, QF_U8),
                   empty_tensor(w.device(), Shape{n, k / group}, QF_BF16)};
  QfQuantize args{};
  args.w = w.data();
  args.q = result.q.as<uint8_t>();
  args.scales = result.scales.as<uint16_t>();
  args.n = n;
  args.k = k;
  args.ldw = row_stride(w);
  args.group = group;
  args.w_dtype = w.dtype;
  args.bits = static_cast<int32_t>(bits);
  launch(w.device(), kOp, w.device().backend->quantize, args, result.q, w, result.scales);
  return result;
}

Tensor quant_linear(const Tensor& x, const Tensor& q, const Tensor& scales, const Tensor* bias, const Tensor* residual,
                    const Tensor* norm_weight, double norm_eps, int32_t activation, int32_t math, int32_t y_dtype) {
  constexpr const char* kOp = "quantLinear";
  Device& device = common_device(kOp, x, {&q, &scales, bias, residual, norm_weight});
  check_activations(kOp, "x", x);
  const Rows rows = rows_of(kOp, "x", x);
  check_dtype(kOp, "q", q, {QF_U8});
  check_rank(kOp, "q", q, 2, "[n, k * bits / 8]");
  check_dense(kOp, "q", q);
  const int64_t n = q.shape[0], k = rows.cols;
  const bool is_int4 = q.shape[1] * 2 == k;
  if (!is_int4 && q.shape[1] != k) {
    fail(ErrorCode::kShape, "%s: x %s does not fit q %s (k or k / 2 bytes per row)", kOp, x.shape.text().c_str(),
         q.shape.text().c_str());
  }
  check_dtype(kOp, "scales", scales, {QF_BF16});
  check_rank(kOp, "scales", scales, 2, "[n, k / group]");
  check_shape(kOp, "scales", scales, Shape{n, scales.shape[1]});
  check_dense(kOp, "scales", scales);
  const int64_t groups = scales.shape[1];
  if (k > 0 && (groups == 0 || k % groups != 0 || k / groups % 2 != 0)) {
    fail(ErrorCode::kShape, "%s: scales %s do not cut %lld columns into even groups", kOp, scales.shape.text().c_str(),
         static_cast<long long>(k));
  }
  check_modes(kOp, activation, QF_MATH_F32);
  if (math != QF_MATH_F32 && math != QF_MATH_INT8)
    fail(ErrorCode::kInvalidArgument, "%s: math must be f32 or int8", kOp);
  const Output out = check_output(kOp, x, n, bias, residual, y_dtype);
  check_norm(kOp, norm_weight, k);
  Tensor y = empty_tensor(device, out.shape, out.dtype);
  QfQuantLinear args{};
  args.x = x.data();
  args.q = q.as<uint8_t>();
  args.scales = scales.as<uint16_t>();
  args.bias = bias != nullptr ? bias->as<float>() : nullptr;
  args.residual = residual != nullptr ? residual->data() : nullptr;
  args.norm_weight = norm_weight != nullptr ? norm_weight->as<float>() : nullptr;
  args.y = y.data();
  args.m = rows.rows;
  args.n = n;
  args.k = k;
  args.group = k > 0 ? k / groups : 2;
  args.ldx = rows.ld;
  args.ldr = out.ldr;
  args.ldy = n;
  args.norm_eps = static_cast<float>(norm_eps);
  args.dtype = x.dtype;
  args.y_dtype = y.dtype;
  args.bits = is_int4 && k > 0 ? 4 : 8;
  args.activation = activation;
  args.math = math;
  launch(device, kOp, device.backend->quant_linear, args, y, x, q, scales, bias != nullptr ? *bias : x,
         residual != nullptr ? *residual : x, norm_weight != nullptr ? *norm_weight : x);
  return y;
}

}  // namespace qformer::ops
