// The Q-Former's cross-attention block. See QfQFormerCrossAttention in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {

Tensor qformer_cross_attention(const Tensor& x, const Tensor& wq, const Tensor& bq, const Tensor& k, const Tensor& v,
                               const Tensor& wo, const Tensor& bo, const Tensor& norm_weight, const Tensor& norm_bias,
                               int64_t num_query, double scale, double norm_eps, int32_t math) {
  constexpr const char* kOp = "qformerCrossAttention";
  Device& device = common_device(kOp, x, {&wq, &bq, &k, &v, &wo, &bo, &norm_weight, &norm_bias});
  check_rank(kOp, "x", x, 3, "[batch, rows, hidden]");
  check_activations(kOp, "x", x);
  check_dense(kOp, "x", x);
  const int64_t batch = x.shape[0], rows = x.shape[1], width = x.shape[2];
  const int64_t k_stride = token_stride(kOp, "k", k), v_stride = token_stride(kOp, "v", v);
  check_dtype(kOp, "k", k, {x.dtype});
  check_dtype(kOp, "v", v, {x.dtype});
  const int64_t heads = k.shape[1], head_dim = k.shape[2];
  const int64_t keys = batch > 0 ? k.shape[0] / batch : 0;
  if (k.shape[0] != batch * keys || heads * head_dim != width) {
    fail(ErrorCode::kShape, "%s: k %s does not fit x %s ([batch * keys, heads, head_dim] of the same batch and width)",
         kOp, k.shape.text().c_str(), x.shape.text().c_str());
  }
  check_shape(kOp, "v", v, k.shape);
  if (k.shape[0] > 1 && k_stride != v_stride) fail(ErrorCode::kShape, "%s: k and v must have equal row strides", kOp);
  check_range(kOp, "numQuery", num_query, 0, rows);
  check_range(kOp, "math", math, QF_MATH_F32, QF_MATH_BF16);
  const auto check_square = [&](const char* name, const Tensor& w, int32_t dtype) {
    check_weight_dtype(kOp, name, w, dtype);
    check_shape(kOp, name, w, Shape{width, width});
    check_dense(kOp, name, w);
  };
  check_square("wq", wq, x.dtype);
  check_dtype(kOp, "wo", wo, {wq.dtype});
  check_square("wo", wo, x.dtype);
  check_vector(kOp, "bq", bq, width, QF_F32);
  check_vector(kOp, "bo", bo, width, QF_F32);
  check_vector(kOp, "normWeight", norm_weight, width, QF_F32);
  check_vector(kOp, "normBias", norm_bias, width, QF_F32);
  Tensor y = empty_tensor(device, x.shape, x.dtype);
  QfQFormerCrossAttention args{};
  args.x = x.data();
  args.wq = wq.data();
  args.bq = bq.as<float>();
  args.k = k.data();
  args.v = v.data();
  args.wo = wo.data();
  args.bo = bo.as<float>();
  args.norm_weight = norm_weight.as<float>();
  args.norm_bias = norm_bias.as<float>();
  args.y = y.data();
  args.batch = batch;
  args.rows_per_batch = rows;
  args.num_query = num_query;
  args.keys = keys;
  args.heads = heads;
  args.head_dim = head_dim;
  args.kv_stride = k_stride;
  args.scale = static_cast<float>(scale);
  args.norm_eps = static_cast<float>(norm_eps);
  args.dtype = x.dtype;
  args.w_dtype = wq.dtype;
  args.math = math;
  launch(device, kOp, device.backend->qformer_cross_attention, args, y, x, wq, bq, k, v, wo, bo, norm_weight,
         norm_bias);
  return y;
}

}  // namespace qformer::ops
