// The launcher of plain attention: nine combinations of dtypes of one kernel.
#include <algorithm>

#include "attention_launch.h"
#include "attention_plain.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

template <class T, class C>
QfStatus launch_kernel(DeviceContext& context, const char* op, const AttentionProblem& p, size_t shared) {
  const int64_t rows = static_cast<int64_t>(p.tokens_q) * p.group;
  // One CTA at least: it reports offsets that do not fit.
  const int64_t tiles = std::max<int64_t>(1, row_tile_bound(rows, p.batch, kPlainRows));
  const dim3 grid(static_cast<uint32_t>(tiles), static_cast<uint32_t>(p.kv_heads),
                  static_cast<uint32_t>((p.head_dim + kPlainColumns - 1) / kPlainColumns));
  return launch(op, context.stream, attention_plain_kernel<T, C>, grid, dim3(kPlainThreads), shared, p);
}

template <class T>
QfStatus launch_for_cache(DeviceContext& context, const char* op, const AttentionProblem& p, int32_t cache_dtype,
                          size_t shared) {
  if (cache_dtype == QF_F16) return launch_kernel<T, Half>(context, op, p, shared);
  if (cache_dtype == QF_BF16) return launch_kernel<T, BFloat16>(context, op, p, shared);
  return launch_kernel<T, float>(context, op, p, shared);
}

}  // namespace

QfStatus launch_plain_attention(DeviceContext& context, const char* op, const AttentionProblem& p, int32_t dtype,
                                int32_t cache_dtype) {
  const size_t shared = plain_shared_bytes(p.head_dim);
  if (shared > context.shared_memory_per_block_optin) {
    return fail(QF_UNSUPPORTED, "%s: head_dim %d needs %zu bytes of shared memory, a block of this device has %zu", op,
                p.head_dim, shared, context.shared_memory_per_block_optin);
  }
  if (dtype == QF_F16) return launch_for_cache<Half>(context, op, p, cache_dtype, shared);
  if (dtype == QF_BF16) return launch_for_cache<BFloat16>(context, op, p, cache_dtype, shared);
  return launch_for_cache<float>(context, op, p, cache_dtype, shared);
}

}  // namespace qformer::cuda
