// Writes the keys and values of new tokens into their slots of the paged cache, converted to the cache's dtype.
// Slots are checked before the first write, so a bad slot leaves the cache untouched.
// Traffic: k and v read once and written once.

#include "backend/dtype.h"
#include "error.h"
#include "families.h"
#include "kernels.h"
#include "thread_pool.h"

namespace qformer::cpu {

QfStatus kv_append(int32_t, const QfKvAppend* args) {
  const auto& a = *args;
  for (int64_t t = 0; t < a.tokens; ++t) {
    if (a.slot_mapping[t] < a.slots) continue;
    return fail(QF_INVALID_ARGUMENT, "kvAppend: slot %d of token %lld is outside the cache of %lld slots",
                a.slot_mapping[t], static_cast<long long>(t), static_cast<long long>(a.slots));
  }
  const int64_t width = a.kv_heads * a.head_dim;
  const auto row_bytes = width * static_cast<int64_t>(qf_dtype_size(a.cache_dtype));
  const auto convert = kernels().elementwise.convert;
  const auto* k = static_cast<const float*>(a.k);
  const auto* v = static_cast<const float*>(a.v);
  auto* k_cache = static_cast<char*>(a.k_cache);
  auto* v_cache = static_cast<char*>(a.v_cache);
  parallel_for(a.tokens, grain_for(static_cast<double>(width)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (a.slot_mapping[t] < 0) continue;
      const int64_t offset = a.slot_mapping[t] * row_bytes;
      convert(k + t * a.k_stride, QF_F32, k_cache + offset, a.cache_dtype, width);
      convert(v + t * a.v_stride, QF_F32, v_cache + offset, a.cache_dtype, width);
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
