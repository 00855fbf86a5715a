// Rotary embedding, attention and the paged KV cache. See QfRope, QfAttention, QfKvAppend and QfPagedAttention in
// backend/backend.h. What cu_seqlens, slots and block tables point at is checked by the backend, which can read them.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {
namespace {

// A [batch + 1] vector of offsets; returns the batch size.
int64_t check_cu_seqlens(const char* op, const char* name, const Tensor& x) {
  check_rank(op, name, x, 1, "[batch + 1]");
  if (x.shape[0] < 1) fail(ErrorCode::kShape, "%s: %s must be [batch + 1], got [0]", op, name);
  check_vector(op, name, x, x.shape[0], QF_I32);
  return x.shape[0] - 1;
}

void check_heads(const char* op, int64_t heads, int64_t kv_heads) {
  if (kv_heads > 0 && heads > 0 && heads % kv_heads == 0) return;
  fail(ErrorCode::kShape, "%s: %lld heads cannot share %lld kv heads", op, static_cast<long long>(heads),
       static_cast<long long>(kv_heads));
}

// Distances that a bias tells apart; kernels count them in 32 bits.
constexpr int64_t kMaxBiasSpan = int64_t{1} << 24;

struct CacheShape {
  int64_t blocks, block_size, kv_heads, head_dim;
};

CacheShape check_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  check_rank(op, "kCache", k_cache, 4, "[blocks, block_size, kv_heads, head_dim]");
  check_dtype(op, "kCache", k_cache, {QF_F32, QF_F16, QF_BF16});
  check_dense(op, "kCache", k_cache);
  check_dtype(op, "vCache", v_cache, {k_cache.dtype});
  check_shape(op, "vCache", v_cache, k_cache.shape);
  check_dense(op, "vCache", v_cache);
  if (k_cache.shape[1] < 1) fail(ErrorCode::kShape, "%s: block_size must be at least 1", op);
  return {k_cache.shape[0], k_cache.shape[1], k_cache.shape[2], k_cache.shape[3]};
}

// The bias by distance of QfAttention and QfPagedAttention.
template <class Args>
void set_bias(const char* op, Args& args, const Tensor& q, const Tensor* bias, int64_t bias_origin) {
  if (bias == nullptr) return;
  check_rank(op, "bias", *bias, 2, "[heads, span]");
  check_f32(op, "bias", *bias);
  check_dense(op, "bias", *bias);
  check_shape(op, "bias", *bias, Shape{q.shape[1], bias->shape[1]});
  check_range(op, "the span of bias", bias->shape[1], 1, kMaxBiasSpan);
  check_range(op, "biasOrigin", bias_origin, 0, bias->shape[1] - 1);
  args.bias = bias->as<float>();
  args.bias_span = bias->shape[1];
  args.bias_origin = bias_origin;
}

}  // namespace

Tensor qkv_append(const Tensor& x, const Tensor& norm_weight, const Tensor& wq, const Tensor& wk, const Tensor& wv,
                  const Tensor& positions, const Tensor& inv_freq, const Tensor& k_cache, const Tensor& v_cache,
                  const Tensor& slot_mapping, double norm_eps, int32_t math) {
  constexpr const char* kOp = "qkvAppend";
  Device& device =
      common_device(kOp, x, {&norm_weight, &wq, &wk, &wv, &positions, &inv_freq, &k_cache, &v_cache, &slot_mapping});
  check_rank(kOp, "x", x, 2, "[tokens, k]");
  check_activations(kOp, "x", x);
  const Rows rows = rows_of(kOp, "x", x);
  check_vector(kOp, "normWeight", norm_weight, rows.cols, QF_F32);
  const CacheShape cache = check_caches(kOp, k_cache, v_cache);
  check_writable(kOp, "kCache", k_cache);
  check_writable(kOp, "vCache", v_cache);
  check_range(kOp, "math", math, QF_MATH_F32, QF_MATH_BF16);
  const int64_t head_dim = cache.head_dim;
  if (head_dim < 2 || head_dim % 2 != 0)
    fail(ErrorCode::kShape, "qkvAppend: head_dim must be even, got %lld", static_cast<long long>(head_dim));
  check_rank(kOp, "wq", wq, 2, "[heads * head_dim, k]");
  check_weight_dtype(kOp, "wq", wq, x.dtype);
  check_dense(kOp, "wq", wq);
  const int64_t heads = wq.shape[0] / head_dim;
  check_shape(kOp, "wq", wq, Shape{heads * head_dim, rows.cols});
  check_heads(kOp, heads, cache.kv_heads);
  const auto check_kv = [&](const char* name, const Tensor& w) {
    check_dtype(kOp, name, w, {wq.dtype});
    check_shape(kOp, name, w, Shape{cache.kv_heads * head_dim, rows.cols});
    check_dense(kOp, name, w);
  };
  check_kv("wk", wk);
  check_kv("wv", wv);
  check_vector(kOp, "positions", positions, rows.rows, QF_I32);
  check_vector(kOp, "invFreq", inv_freq, head_dim / 2, QF_F32);
  check_vector(kOp, "slotMapping", slot_mapping, rows.rows, QF_I32);
  Tensor q = empty_tensor(device, Shape{rows.rows, heads, head_dim}, x.dtype);
  QfQkvAppend args{};
  args.x = x.data();
  args.norm_weight = norm_weight.as<float>();
  args.wq = wq.data();
  args.wk = wk.data();
  args.wv = wv.data();
  args.positions = positions.as<int32_t>();
  args.inv_freq = inv_freq.as<float>();
  args.slot_mapping = slot_mapping.as<int32_t>();
  args.q = q.data();
  args.k_cache = k_cache.data();
  args.v_cache = v_cache.data();
  args.m = rows.rows;
  args.k = rows.cols;
  args.ldx = rows.ld;
  args.heads = heads;
  args.kv_heads = cache.kv_heads;
  args.head_dim = head_dim;
  args.slots = cache.blocks * cache.block_size;
  args.norm_eps = static_cast<float>(norm_eps);
  args.dtype = x.dtype;
  args.w_dtype = wq.dtype;
  args.cache_dtype = k_cache.dtype;
  args.math = math;
  launch(device, kOp, device.backend->qkv_append, args, q, x, norm_weight, wq, wk, wv, positions, inv_freq, k_cache,
         v_cache, slot_mapping);
  return q;
}

Tensor rope(const Tensor& x, const Tensor& positions, const Tensor& inv_freq) {
  constexpr const char* kOp = "rope";
  Device& device = common_device(kOp, x, {&positions, &inv_freq});
  const int64_t stride = token_stride(kOp, "x", x);
  const int64_t head_dim = x.shape[2];
  if (head_dim % 2 != 0)
    fail(ErrorCode::kShape, "rope: head_dim must be even, got %lld", static_cast<long long>(head_dim));
  check_vector(kOp, "positions", positions, x.shape[0], QF_I32);
  check_vector(kOp, "invFreq", inv_freq, head_dim / 2, QF_F32);
  Tensor y = empty_tensor(device, x.shape, x.dtype);
  const QfRope args{
      x.data(), positions.as<int32_t>(), inv_freq.as<float>(), y.data(), x.shape[0], x.shape[1], head_dim, stride,
      x.dtype};
  launch(device, kOp, device.backend->rope, args, y, x, positions, inv_freq);
  return y;
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
                 const Tensor& cu_seqlens_k, const Tensor* bias, int64_t bias_origin, double scale, int32_t mask,
                 int64_t num_query, int32_t math) {
  constexpr const char* kOp = "attention";
  Device& device = common_device(kOp, q, {&k, &v, &cu_seqlens_q, &cu_seqlens_k, bias});
  QfAttention args{};
  args.q_stride = token_stride(kOp, "q", q);
  args.k_stride = token_stride(kOp, "k", k);
  args.v_stride = token_stride(kOp, "v", v);
  check_dtype(kOp, "k", k, {q.dtype});
  check_dtype(kOp, "v", v, {q.dtype});
  check_shape(kOp, "v", v, k.shape);
  check_shape(kOp, "k", k, Shape{k.shape[0], k.shape[1], q.shape[2]});
  check_heads(kOp, q.shape[1], k.shape[1]);
  args.batch = check_cu_seqlens(kOp, "cuSeqlensQ", cu_seqlens_q);
  check_vector(kOp, "cuSeqlensK", cu_seqlens_k, args.batch + 1, QF_I32);
  set_bias(kOp, args, q, bias, bias_origin);
  check_range(kOp, "mask", mask, QF_MASK_FULL, QF_MASK_ITG);
  check_range(kOp, "numQuery", num_query, 0, INT32_MAX);
  check_range(kOp, "math", math, QF_MATH_F32, QF_MATH_BF16);
  Tensor o = empty_tensor(device, q.shape, q.dtype);
  args.q = q.data();
  args.k = k.data();
  args.v = v.data();
  args.o = o.data();
  args.cu_seqlens_q = cu_seqlens_q.as<int32_t>();
  args.cu_seqlens_k = cu_seqlens_k.as<int32_t>();
  args.tokens_q = q.shape[0];
  args.tokens_k = k.shape[0];
  args.heads = q.shape[1];
  args.kv_heads = k.shape[1];
  args.head_dim = q.shape[2];
  args.scale = static_cast<float>(scale);
  args.dtype = q.dtype;
  args.mask = mask;
  args.num_query = static_cast<int32_t>(num_query);
  args.math = math;
  launch(device, kOp, device.backend->attention, args, o, q, k, v, cu_seqlens_q, cu_seqlens_k,
         bias != nullptr ? *bias : q);
  return o;
}

void kv_append(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
               const Tensor& slot_mapping) {
  constexpr const char* kOp = "kvAppend";
  Device& device = common_device(kOp, k, {&v, &k_cache, &v_cache, &slot_mapping});
  QfKvAppend args{};
  args.k_stride = token_stride(kOp, "k", k);
  args.v_stride = token_stride(kOp, "v", v);
  const CacheShape cache = check_caches(kOp, k_cache, v_cache);
  check_writable(kOp, "kCache", k_cache);
  check_writable(kOp, "vCache", v_cache);
  check_shape(kOp, "k", k, Shape{k.shape[0], cache.kv_heads, cache.head_dim});
  check_dtype(kOp, "v", v, {k.dtype});
  check_shape(kOp, "v", v, k.shape);
  check_vector(kOp, "slotMapping", slot_mapping, k.shape[0], QF_I32);
  args.k = k.data();
  args.v = v.data();
  args.k_cache = k_cache.data();
  args.v_cache = v_cache.data();
  args.slot_mapping = slot_mapping.as<int32_t>();
  args.tokens = k.shape[0];
  args.kv_heads = cache.kv_heads;
  args.head_dim = cache.head_dim;
  args.slots = cache.blocks * cache.block_size;
  args.dtype = k.dtype;
  args.cache_dtype = k_cache.dtype;
  launch(device, kOp, device.backend->kv_append, args, k, v, k_cache, v_cache, slot_mapping);
}

Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cu_seqlens_q,
                       const Tensor& block_table, const Tensor& context_lens, const Tensor* bias, int64_t bias_origin,
                       double scale, int32_t math) {
  constexpr const char* kOp = "pagedAttention";
  Device& device = common_device(kOp, q, {&k_cache, &v_cache, &cu_seqlens_q, &block_table, &context_lens, bias});
  QfPagedAttention args{};
  args.q_stride = token_stride(kOp, "q", q);
  const CacheShape cache = check_caches(kOp, k_cache, v_cache);
  check_shape(kOp, "q", q, Shape{q.shape[0], q.shape[1], cache.head_dim});
  check_heads(kOp, q.shape[1], cache.kv_heads);
  args.batch = check_cu_seqlens(kOp, "cuSeqlensQ", cu_seqlens_q);
  check_rank(kOp, "blockTable", block_table, 2, "[batch, max_blocks]");
  check_dtype(kOp, "blockTable", block_table, {QF_I32});
  check_shape(kOp, "blockTable", block_table, Shape{args.batch, block_table.shape[1]});
  check_dense(kOp, "blockTable", block_table);
  check_vector(kOp, "contextLens", context_lens, args.batch, QF_I32);
  check_range(kOp, "math", math, QF_MATH_F32, QF_MATH_BF16);
  set_bias(kOp, args, q, bias, bias_origin);
  Tensor o = empty_tensor(device, q.shape, q.dtype);
  args.q = q.data();
  args.k_cache = k_cache.data();
  args.v_cache = v_cache.data();
  args.o = o.data();
  args.cu_seqlens_q = cu_seqlens_q.as<int32_t>();
  args.block_table = block_table.as<int32_t>();
  args.context_lens = context_lens.as<int32_t>();
  args.tokens = q.shape[0];
  args.heads = q.shape[1];
  args.kv_heads = cache.kv_heads;
  args.head_dim = cache.head_dim;
  args.blocks = cache.blocks;
  args.block_size = cache.block_size;
  args.max_blocks = block_table.shape[1];
  args.scale = static_cast<float>(scale);
  args.dtype = q.dtype;
  args.cache_dtype = k_cache.dtype;
  args.math = math;
  launch(device, kOp, device.backend->paged_attention, args, o, q, k_cache, v_cache, cu_seqlens_q, block_table,
         context_lens, bias != nullptr ? *bias : q);
  return o;
}

}  // namespace qformer::ops
