// LoRA. Merge: y = w + scaling * b · a, one weight row at a time; traffic: w once in, once out, a stays in cache.
// Apply: the adapter of each row added to y, two dot products per row, the inner one of length k kept in f32; traffic:
// a and b of a row's adapter once per row. Source: Hu et al. 2021; adapters per row: Chen et al. 2023 (Punica).

#include <algorithm>

#include "error.h"
#include "families.h"
#include "kernels.h"
#include "linear.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {

QfStatus lora_merge(int32_t, const QfLoraMerge* args) {
  const auto row_kernel = kernels().linear.lora_row;
  const int64_t row_bytes = args->in * static_cast<int64_t>(qf_dtype_size(args->w_dtype));
  const double nanoseconds = 0.05 * static_cast<double>(args->in * (args->rank + 4));
  parallel_for(args->out, grain_for(nanoseconds), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      row_kernel(static_cast<const char*>(args->w) + row * row_bytes, args->a, args->b + row * args->rank,
                 static_cast<char*>(args->y) + row * row_bytes, args->rank, args->in, args->scaling, args->w_dtype);
    }
  });
  return QF_OK;
}

QfStatus lora_apply(int32_t, const QfLoraApply* args) {
  const auto& a = *args;
  for (int64_t r = 0; r < a.m; r++) {
    if (a.adapters[r] < a.slots) continue;
    return fail(QF_INVALID_ARGUMENT, "loraApply: adapter %d of row %lld is outside [0, %lld)", a.adapters[r],
                static_cast<long long>(r), static_cast<long long>(a.slots));
  }
  const auto* x = static_cast<const float*>(a.x);
  auto* y = static_cast<float*>(a.y);
  const auto size = static_cast<int64_t>(qf_dtype_size(a.w_dtype));
  const DotKernels& dot = dot_kernels(a.w_dtype, QF_MATH_F32);
  const auto sums = [&](Scratch slot, int64_t n) {
    return static_cast<float*>(thread_scratch(slot, static_cast<size_t>(n) * sizeof(float)));
  };
  const double cost = 0.1 * static_cast<double>(a.rank * (a.k + a.n));
  parallel_for(a.m, grain_for(cost), [&](int64_t begin, int64_t end) {
    float* low = sums(Scratch::kProjected, a.rank);
    float* high = sums(Scratch::kSums, a.n);
    float* packed = sums(Scratch::kPackedX, std::max(a.k, a.rank) + kernels().lanes);
    for (int64_t r = begin; r < end; r++) {
      const int64_t slot = a.adapters[r];
      if (slot < 0) continue;
      const char* down = static_cast<const char*>(a.a) + slot * a.rank * a.k * size;
      const char* up = static_cast<const char*>(a.b) + slot * a.n * a.rank * size;
      dot.pack_x(x + r * a.ldx, a.ldx, 1, a.k, packed);
      dot.rows({packed, 1, down, a.k, a.rank, a.k, low, a.rank, nullptr, 0, false});
      dot.pack_x(low, a.rank, 1, a.rank, packed);
      dot.rows({packed, 1, up, a.rank, a.n, a.rank, high, a.n, nullptr, 0, false});
      for (int64_t i = 0; i < a.n; i++) y[r * a.ldy + i] += a.scaling[slot] * high[i];
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
