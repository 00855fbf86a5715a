// Adapters of low rank: merged into a weight, or applied per row. See QfLoraMerge and QfLoraApply in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {

Tensor lora_merge(const Tensor& w, const Tensor& a, const Tensor& b, double scaling) {
  constexpr const char* kOp = "loraMerge";
  Device& device = common_device(kOp, w, {&a, &b});
  check_weight(kOp, "w", w, QF_F32);
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

void lora_apply(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, const Tensor& scaling,
                const Tensor& adapters) {
  constexpr const char* kOp = "loraApply";
  Device& device = common_device(kOp, x, {&y, &a, &b, &scaling, &adapters});
  check_activations(kOp, "x", x);
  check_rank(kOp, "a", a, 3, "[slots, rank, k]");
  check_rank(kOp, "b", b, 3, "[slots, n, rank]");
  const int64_t slots = a.shape[0], rank = a.shape[1];
  const Rows rows = rows_of(kOp, "x", x);
  check_weight_dtype(kOp, "a", a, x.dtype);
  check_shape(kOp, "a", a, Shape{slots, rank, rows.cols});
  check_dense(kOp, "a", a);
  check_dtype(kOp, "b", b, {a.dtype});
  check_shape(kOp, "b", b, Shape{slots, b.shape[1], rank});
  check_dense(kOp, "b", b);
  check_vector(kOp, "scaling", scaling, slots, QF_F32);
  check_vector(kOp, "adapters", adapters, rows.rows, QF_I32);
  check_dtype(kOp, "y", y, {x.dtype});
  check_shape(kOp, "y", y, with_last(x.shape, b.shape[1]));
  check_writable(kOp, "y", y);
  const Rows out = rows_of(kOp, "y", y);
  QfLoraApply args{};
  args.x = x.data();
  args.a = a.data();
  args.b = b.data();
  args.scaling = scaling.as<float>();
  args.adapters = adapters.as<int32_t>();
  args.y = y.data();
  args.m = rows.rows;
  args.n = out.cols;
  args.k = rows.cols;
  args.slots = slots;
  args.rank = rank;
  args.ldx = rows.ld;
  args.ldy = out.ld;
  args.dtype = x.dtype;
  args.w_dtype = a.dtype;
  launch(device, kOp, device.backend->lora_apply, args, y, x, a, b, scaling, adapters);
}

}  // namespace qformer::ops
