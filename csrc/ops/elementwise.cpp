// Elementwise arithmetic, activations, conversion and strided copies. See QfBinaryArgs, QfUnary and QfCopy in
// backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {
namespace {

bool is_float(int32_t dtype) { return dtype == QF_F32 || dtype == QF_F16 || dtype == QF_BF16; }

void run_copy(const char* op, const Tensor& dst, const Tensor& src) {
  if (src.dtype != dst.dtype && !(is_float(src.dtype) && is_float(dst.dtype))) {
    fail(ErrorCode::kDtype, "%s: %s does not convert to %s", op, qf_dtype_name(src.dtype), qf_dtype_name(dst.dtype));
  }
  QfCopy args{};
  args.x = src.data();
  args.y = dst.data();
  args.x_dtype = src.dtype;
  args.y_dtype = dst.dtype;
  const int pad = kMaxRank - src.rank();
  for (int axis = 0; axis < kMaxRank; ++axis) {
    args.shape[axis] = axis < pad ? 1 : src.shape[axis - pad];
    args.x_strides[axis] = axis < pad ? 0 : src.strides[axis - pad];
    args.y_strides[axis] = axis < pad ? 0 : dst.strides[axis - pad];
  }
  launch(src.device(), op, src.device().backend->copy, args, dst, src);
}

}  // namespace

Tensor binary(const Tensor& a, const Tensor& b, int32_t op) {
  static constexpr const char* kNames[] = {"add", "sub", "mul", "div"};
  check_range("binary", "op", op, QF_ADD, QF_DIV);
  const char* name = kNames[op];
  Device& device = common_device(name, a, {&b});
  check_activations(name, "a", a);
  check_dtype(name, "b", b, {a.dtype});
  const Rows left = rows_of(name, "a", a);
  int64_t ldb = 0;
  if (b.rank() == 1 && a.rank() != 1) {
    check_vector(name, "b", b, left.cols, a.dtype);
  } else {
    check_shape(name, "b", b, a.shape);
    ldb = rows_of(name, "b", b).ld;
  }
  Tensor y = empty_tensor(device, a.shape, a.dtype);
  const QfBinaryArgs args{a.data(), b.data(), y.data(), left.rows, left.cols, left.ld, ldb, op, a.dtype};
  launch(device, name, device.backend->binary, args, y, a, b);
  return y;
}

Tensor unary(const Tensor& x, int32_t activation, double scale, double shift) {
  constexpr const char* kOp = "activation";
  check_activations(kOp, "x", x);
  check_range(kOp, "activation", activation, QF_ACT_NONE, QF_ACT_SILU);
  const Rows rows = rows_of(kOp, "x", x);
  Tensor y = empty_tensor(x.device(), x.shape, x.dtype);
  const QfUnary args{x.data(),
                     y.data(),
                     rows.rows,
                     rows.cols,
                     rows.ld,
                     activation,
                     x.dtype,
                     static_cast<float>(scale),
                     static_cast<float>(shift)};
  launch(x.device(), kOp, x.device().backend->unary, args, y, x);
  return y;
}

Tensor cast(const Tensor& x, int32_t dtype) {
  check_range("cast", "dtype", dtype, 0, QF_DTYPE_COUNT - 1);
  Tensor y = empty_tensor(x.device(), x.shape, dtype);
  run_copy("cast", y, x);
  return y;
}

void copy_into(const Tensor& dst, const Tensor& src) {
  common_device("copyFrom", dst, {&src});
  check_shape("copyFrom", "source", src, dst.shape);
  check_writable("copyFrom", "target", dst);
  run_copy("copyFrom", dst, src);
}

}  // namespace qformer::ops
