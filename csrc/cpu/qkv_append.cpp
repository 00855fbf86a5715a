// The front half of a decoder layer's attention: norm, q, k and v products, rope, and k and v into their cache slots.
// The parts run one after the other through working memory, so every value has the bits of the separate ops.
// Traffic: the weights once; x, q, k and v stay in cache for the few rows of a decode step.

#include "error.h"
#include "families.h"
#include "linear.h"
#include "norm.h"
#include "scratch.h"

namespace qformer::cpu {
namespace {

// Before the first write, so that a bad slot leaves q and the cache untouched.
QfStatus check_slots(const QfQkvAppend& a) {
  for (int64_t t = 0; t < a.m; t++) {
    if (a.slot_mapping[t] < a.slots) continue;
    return fail(QF_INVALID_ARGUMENT, "slot %d of token %lld is outside the cache of %lld slots", a.slot_mapping[t],
                static_cast<long long>(t), static_cast<long long>(a.slots));
  }
  return QF_OK;
}

// y = x · wᵀ, dense; rotated in place where inv_freq is given
void project(const QfQkvAppend& a, FloatRows x, const void* w, int64_t heads, bool rotate, float* y) {
  const int64_t n = heads * a.head_dim;
  run_linear({.x = x.data,
              .w = w,
              .y = y,
              .m = a.m,
              .n = n,
              .k = a.k,
              .ldx = x.ld,
              .ldw = a.k,
              .ldy = n,
              .w_dtype = a.w_dtype,
              .activation = QF_ACT_NONE,
              .math = a.math});
  if (!rotate) return;
  const QfRope turn{.x = y,
                    .positions = a.positions,
                    .inv_freq = a.inv_freq,
                    .y = y,
                    .tokens = a.m,
                    .heads = heads,
                    .head_dim = a.head_dim,
                    .x_stride = n,
                    .dtype = QF_F32};
  rope(0, &turn);
}

}  // namespace

QfStatus qkv_append(int32_t device, const QfQkvAppend* args) {
  const auto& a = *args;
  if (const QfStatus status = check_slots(a); status != QF_OK) return status;
  const FloatRows x = normed_rows(a.x, a.norm_weight, a.m, a.k, a.ldx, a.norm_eps);
  const int64_t width = a.kv_heads * a.head_dim;
  auto* k =
      static_cast<float*>(thread_scratch(Scratch::kProjected, static_cast<size_t>(2 * a.m * width) * sizeof(float)));
  float* v = k + a.m * width;
  project(a, x, a.wq, a.heads, true, static_cast<float*>(a.q));
  project(a, x, a.wk, a.kv_heads, true, k);
  project(a, x, a.wv, a.kv_heads, false, v);
  const QfKvAppend append{.k = k,
                          .v = v,
                          .k_cache = a.k_cache,
                          .v_cache = a.v_cache,
                          .slot_mapping = a.slot_mapping,
                          .tokens = a.m,
                          .kv_heads = a.kv_heads,
                          .head_dim = a.head_dim,
                          .k_stride = width,
                          .v_stride = width,
                          .slots = a.slots,
                          .dtype = QF_F32,
                          .cache_dtype = a.cache_dtype};
  return kv_append(device, &append);
}

}  // namespace qformer::cpu
