// Rows by index: embedding, gather, scatter. See QfGatherRows and QfScatterRows in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {
namespace {

Tensor gather(const char* op, const char* name, const Tensor& table, const Tensor& ids, int32_t out_dtype) {
  Device& device = common_device(op, table, {&ids});
  check_rank(op, name, table, 2, "[rows, cols]");
  const Rows rows = rows_of(op, name, table);
  check_rank(op, "ids", ids, 1, "[tokens]");
  check_vector(op, "ids", ids, ids.shape[0], QF_I32);
  Tensor y = empty_tensor(device, Shape{ids.shape[0], rows.cols}, out_dtype);
  const QfGatherRows args{table.data(), ids.as<int32_t>(), y.data(),    rows.rows, rows.cols,
                          ids.shape[0], rows.ld,           table.dtype, out_dtype};
  launch(device, op, device.backend->gather_rows, args, y, table, ids);
  return y;
}

}  // namespace

Tensor embedding(const Tensor& ids, const Tensor& table, int32_t dtype) {
  check_dtype("embedding", "table", table, {QF_F32, QF_F16, QF_BF16});
  check_range("embedding", "dtype", dtype, QF_F32, QF_BF16);
  return gather("embedding", "table", table, ids, dtype);
}

Tensor gather_rows(const Tensor& x, const Tensor& ids) { return gather("gatherRows", "x", x, ids, x.dtype); }

void scatter_rows(const Tensor& dst, const Tensor& ids, const Tensor& src) {
  constexpr const char* kOp = "scatterRows";
  Device& device = common_device(kOp, dst, {&ids, &src});
  check_rank(kOp, "dst", dst, 2, "[rows, cols]");
  check_dtype(kOp, "dst", dst, {QF_F32, QF_F16, QF_BF16});
  check_writable(kOp, "dst", dst);
  const Rows to = rows_of(kOp, "dst", dst);
  check_rank(kOp, "ids", ids, 1, "[tokens]");
  check_vector(kOp, "ids", ids, ids.shape[0], QF_I32);
  check_dtype(kOp, "src", src, {dst.dtype});
  check_shape(kOp, "src", src, Shape{ids.shape[0], to.cols});
  const Rows from = rows_of(kOp, "src", src);
  const QfScatterRows args{dst.data(), ids.as<int32_t>(), src.data(), to.rows, to.cols, ids.shape[0],
                           to.ld,      from.ld,           dst.dtype};
  launch(device, kOp, device.backend->scatter_rows, args, src, dst, ids);
}

}  // namespace qformer::ops
