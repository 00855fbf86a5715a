// The entry of the paged attention op: the causal problem over slots of the cache, for the tensor-core kernel where
// activations and cache share a 16-bit dtype, for the plain one elsewhere.
#include <climits>

#include "attention_launch.h"
#include "backend/dtype.h"
#include "entry.h"
#include "runtime/error.h"

namespace qformer::cuda {

QfStatus paged_attention(int32_t device, const QfPagedAttention* args) {
  const QfPagedAttention& a = *args;
  DeviceContext& context = context_of(device);
  if (const QfStatus status = check_activation_dtype(context, "pagedAttention", a.dtype); status != QF_OK)
    return status;
  if (a.batch == 0 && a.tokens != 0) {
    return fail(QF_INVALID_ARGUMENT, "pagedAttention: no sequence holds the %lld tokens of q",
                static_cast<long long>(a.tokens));
  }
  if (a.batch == 0) return QF_OK;
  if (a.tokens * (a.heads / a.kv_heads) > INT_MAX / 2 || a.blocks * a.block_size > INT_MAX ||
      a.max_blocks * a.block_size > INT_MAX / 2) {
    return fail(QF_UNSUPPORTED, "pagedAttention: %lld tokens, %lld slots and block tables of %lld entries are too many",
                static_cast<long long>(a.tokens), static_cast<long long>(a.blocks * a.block_size),
                static_cast<long long>(a.max_blocks));
  }
  AttentionProblem p = {};
  p.q = a.q;
  p.k = a.k_cache;
  p.v = a.v_cache;
  p.bias = a.bias;
  p.o = a.o;
  p.cu_seqlens_q = a.cu_seqlens_q;
  p.block_table = a.block_table;
  p.context_lens = a.context_lens;
  p.fault = context.fault();
  p.q_stride = a.q_stride;
  p.k_stride = p.v_stride = a.kv_heads * a.head_dim;
  p.batch = static_cast<int32_t>(a.batch);
  p.tokens_q = static_cast<int32_t>(a.tokens);
  p.heads = static_cast<int32_t>(a.heads);
  p.kv_heads = static_cast<int32_t>(a.kv_heads);
  p.group = static_cast<int32_t>(a.heads / a.kv_heads);
  p.head_dim = static_cast<int32_t>(a.head_dim);
  p.blocks = static_cast<int32_t>(a.blocks);
  p.block_size = static_cast<int32_t>(a.block_size);
  p.max_blocks = static_cast<int32_t>(a.max_blocks);
  p.bias_span = static_cast<int32_t>(a.bias_span);
  p.bias_origin = static_cast<int32_t>(a.bias_origin);
  p.scale = a.scale;
  p.mask = QF_MASK_CAUSAL;
  if (!fits_tensor_cores(p, a.dtype, a.cache_dtype)) {
    return launch_plain_attention(context, "pagedAttention", p, a.dtype, a.cache_dtype);
  }
  if (a.dtype == QF_F16) return launch_paged_attention<Half>(context, p);
  return launch_paged_attention<BFloat16>(context, p);
}

}  // namespace qformer::cuda
