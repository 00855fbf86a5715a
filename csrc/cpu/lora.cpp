// LoRA merge: y = w + scaling * b · a, one weight row at a time. Traffic: w once in, once out; a stays in cache.

#include "families.h"
#include "kernels.h"
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

}  // namespace qformer::cpu
