// Normalisations over the last axis. See QfLayerNorm, QfRmsNorm and QfSoftmax in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  constexpr const char* kOp = "layerNorm";
  Device& device = common_device(kOp, x, {&weight, &bias});
  check_activations(kOp, "x", x);
  const Rows rows = rows_of(kOp, "x", x);
  check_vector(kOp, "weight", weight, rows.cols, QF_F32);
  check_vector(kOp, "bias", bias, rows.cols, QF_F32);
  Tensor y = empty_tensor(device, x.shape, x.dtype);
  const QfLayerNorm args{x.data(), weight.as<float>(),      bias.as<float>(), y.data(), rows.rows, rows.cols,
                         rows.ld,  static_cast<float>(eps), x.dtype};
  launch(device, kOp, device.backend->layer_norm, args, y, x, weight, bias);
  return y;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  constexpr const char* kOp = "rmsNorm";
  Device& device = common_device(kOp, x, {&weight});
  check_activations(kOp, "x", x);
  const Rows rows = rows_of(kOp, "x", x);
  check_vector(kOp, "weight", weight, rows.cols, QF_F32);
  Tensor y = empty_tensor(device, x.shape, x.dtype);
  const QfRmsNorm args{x.data(), weight.as<float>(),      y.data(), rows.rows, rows.cols,
                       rows.ld,  static_cast<float>(eps), x.dtype};
  launch(device, kOp, device.backend->rms_norm, args, y, x, weight);
  return y;
}

Tensor softmax(const Tensor& x, bool log) {
  const char* op = log ? "logSoftmax" : "softmax";
  check_f32(op, "x", x);
  const Rows rows = rows_of(op, "x", x);
  Tensor y = empty_tensor(x.device(), x.shape, QF_F32);
  const QfSoftmax args{x.as<float>(), y.as<float>(), rows.rows, rows.cols, rows.ld, log ? 1 : 0};
  launch(x.device(), op, x.device().backend->softmax, args, y, x);
  return y;
}

}  // namespace qformer::ops
