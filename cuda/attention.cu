// The entry of the varlen attention op: describes the problem and gives it to the tensor-core kernel or, where that
// cannot read it, to the plain one. The choice depends on dtype, head_dim, strides and scale, never on the batch.
#include "attention_launch.h"

#include <climits>

#include "backend/dtype.h"
#include "entry.h"
#include "runtime/error.h"

namespace qformer::cuda {
namespace {

bool is_aligned(const void* ptr) { return reinterpret_cast<uintptr_t>(ptr) % 16 == 0; }

}  // namespace

bool fits_tensor_cores(const AttentionProblem& p, int32_t dtype, int32_t cache_dtype) {
  const bool sixteen_bits = dtype == cache_dtype && (dtype == QF_F16 || dtype == QF_BF16);
  const bool whole_chunks = p.head_dim % 8 == 0 && p.q_stride % 8 == 0 && p.k_stride % 8 == 0 && p.v_stride % 8 == 0;
  // Wider heads with a bias exist in no model of the family; they are not worth kernels of their own.
  const bool wide = p.head_dim > (p.bias != nullptr ? 64 : 128);
  return sixteen_bits && whole_chunks && !wide && p.head_dim > 0 && p.scale > 0.0f && is_aligned(p.q) &&
         is_aligned(p.k) && is_aligned(p.v) && is_aligned(p.o);
}

QfStatus check_activation_dtype(const DeviceContext& context, const char* op, int32_t dtype) {
  if (dtype != QF_BF16 || context.compute_capability >= 80) return QF_OK;
  return fail(QF_UNSUPPORTED, "%s: dtype bf16 needs compute capability 8.0, this device has %d.%d", op,
              context.compute_capability / 10, context.compute_capability % 10);
}

QfStatus attention(int32_t device, const QfAttention* args) {
  const QfAttention& a = *args;
  DeviceContext& context = context_of(device);
  if (const QfStatus status = check_activation_dtype(context, "attention", a.dtype); status != QF_OK) return status;
  if (a.batch == 0 && (a.tokens_q != 0 || a.tokens_k != 0)) {
    return fail(QF_INVALID_ARGUMENT, "attention: no sequence holds the %lld tokens of q and %lld of k",
                static_cast<long long>(a.tokens_q), static_cast<long long>(a.tokens_k));
  }
  if (a.batch == 0) return QF_OK;
  if (a.tokens_q * (a.heads / a.kv_heads) > INT_MAX / 2 || a.tokens_k > INT_MAX / 2) {
    return fail(QF_UNSUPPORTED, "attention: %lld tokens are more than one call takes",
                static_cast<long long>(a.tokens_q + a.tokens_k));
  }
  AttentionProblem p = {};
  p.q = a.q;
  p.k = a.k;
  p.v = a.v;
  p.bias = a.bias;
  p.o = a.o;
  p.cu_seqlens_q = a.cu_seqlens_q;
  p.cu_seqlens_k = a.cu_seqlens_k;
  p.fault = context.fault();
  p.q_stride = a.q_stride;
  p.k_stride = a.k_stride;
  p.v_stride = a.v_stride;
  p.bias_span = static_cast<int32_t>(a.bias_span);
  p.bias_origin = static_cast<int32_t>(a.bias_origin);
  p.batch = static_cast<int32_t>(a.batch);
  p.tokens_q = static_cast<int32_t>(a.tokens_q);
  p.tokens_k = static_cast<int32_t>(a.tokens_k);
  p.heads = static_cast<int32_t>(a.heads);
  p.kv_heads = static_cast<int32_t>(a.kv_heads);
  p.group = static_cast<int32_t>(a.heads / a.kv_heads);
  p.head_dim = static_cast<int32_t>(a.head_dim);
  p.scale = a.scale;
  p.mask = a.mask;
  p.num_query = a.num_query;
  if (!fits_tensor_cores(p, a.dtype, a.dtype)) return launch_plain_attention(context, "attention", p, a.dtype, a.dtype);
  if (a.dtype == QF_F16) return launch_row_attention<Half>(context, p);
  return launch_row_attention<BFloat16>(context, p);
}

}  // namespace qformer::cuda
