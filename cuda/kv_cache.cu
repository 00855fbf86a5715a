// Writes the keys and values of new tokens into their slots of the paged cache, converted to the cache's dtype. One CTA
// per token, k and v side by side, four values a thread at a time where rows allow. A negative slot is skipped; a slot
// outside the cache is reported and skipped, the other tokens are written. Traffic: k and v read once, written once.

#include <climits>

#include "attention_launch.h"
#include "backend/dtype.h"
#include "entry.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 128;

struct AppendProblem {
  const void* k;
  const void* v;
  void* k_cache;
  void* v_cache;
  const int32_t* slot_mapping;
  int32_t* fault;
  int64_t k_stride, v_stride, slots;
  int32_t width;  // kv_heads * head_dim
};

// Grid: tokens; y 0 is k, y 1 is v. T: activations, C: cache.
template <class T, class C, int N>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) kv_append_kernel(AppendProblem p) {
  const int64_t token = blockIdx.x;
  const bool keys = blockIdx.y == 0;
  const int32_t slot = Global<const int32_t>(p.slot_mapping).load(token);
  if (slot < 0) return;
  if (slot >= p.slots) {
    if (threadIdx.x == 0 && keys) report_fault(p.fault, kFaultSlotOutOfRange);
    return;
  }
  const Global<const T> from =
      Global<const T>(static_cast<const T*>(keys ? p.k : p.v)) + token * (keys ? p.k_stride : p.v_stride);
  const Global<C> to = Global<C>(static_cast<C*>(keys ? p.k_cache : p.v_cache)) + static_cast<int64_t>(slot) * p.width;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) * N; i < p.width; i += kThreads * N) {
    const Vec<T, N> values = from.template load_vec<N>(i);
    Vec<C, N> converted;
#pragma unroll
    for (int n = 0; n < N; ++n) converted[n] = from_float<C>(to_float(values[n]));
    to.template store_vec<N>(i, converted);
  }
}

bool is_aligned(const void* ptr, size_t bytes) { return reinterpret_cast<uintptr_t>(ptr) % bytes == 0; }

template <class T, class C>
QfStatus launch_append(DeviceContext& context, const QfKvAppend& a) {
  const AppendProblem p = {a.k,
                           a.v,
                           a.k_cache,
                           a.v_cache,
                           a.slot_mapping,
                           context.fault(),
                           a.k_stride,
                           a.v_stride,
                           a.slots,
                           static_cast<int32_t>(a.kv_heads * a.head_dim)};
  const bool vectors = p.width % 4 == 0 && a.k_stride % 4 == 0 && a.v_stride % 4 == 0 &&
                       is_aligned(a.k, 4 * sizeof(T)) && is_aligned(a.v, 4 * sizeof(T)) &&
                       is_aligned(a.k_cache, 4 * sizeof(C)) && is_aligned(a.v_cache, 4 * sizeof(C));
  return launch("kvAppend", context.stream, vectors ? kv_append_kernel<T, C, 4> : kv_append_kernel<T, C, 1>,
                dim3(static_cast<uint32_t>(a.tokens), 2), dim3(kThreads), 0, p);
}

template <class T>
QfStatus launch_for_cache(DeviceContext& context, const QfKvAppend& a) {
  if (a.cache_dtype == QF_F16) return launch_append<T, Half>(context, a);
  if (a.cache_dtype == QF_BF16) return launch_append<T, BFloat16>(context, a);
  return launch_append<T, float>(context, a);
}

}  // namespace

QfStatus kv_append(int32_t device, const QfKvAppend* args) {
  DeviceContext& context = context_of(device);
  if (const QfStatus status = check_activation_dtype(context, "kvAppend", args->dtype); status != QF_OK) return status;
  if (args->tokens > INT_MAX || args->kv_heads * args->head_dim > INT_MAX / 2) {
    return fail(QF_UNSUPPORTED, "kvAppend: %lld tokens of %lld values are more than one call takes",
                static_cast<long long>(args->tokens), static_cast<long long>(args->kv_heads * args->head_dim));
  }
  if (args->dtype == QF_F16) return launch_for_cache<Half>(context, *args);
  if (args->dtype == QF_BF16) return launch_for_cache<BFloat16>(context, *args);
  return launch_for_cache<float>(context, *args);
}

}  // namespace qformer::cuda
