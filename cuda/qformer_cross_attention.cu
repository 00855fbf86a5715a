// The entry of the Q-Former's cross-attention block: scratch for the intermediate rows, and the choice between the
// fused kernels (16-bit activations, head_dim 64) and the plain ones. The choice does not depend on the batch.

#include <climits>

#include "attention_launch.h"
#include "backend/dtype.h"
#include "entry.h"
#include "qformer_block.h"
#include "runtime/error.h"

namespace qformer::cuda {
namespace {

bool is_aligned(const void* ptr) { return reinterpret_cast<uintptr_t>(ptr) % 16 == 0; }

bool fits_fused_kernels(const QfQFormerCrossAttention& a) {
  const bool sixteen_bits = (a.dtype == QF_F16 || a.dtype == QF_BF16) && a.w_dtype == a.dtype;
  return sixteen_bits && a.head_dim == 64 && a.keys > 0 && a.num_query > 0 && a.kv_stride % 8 == 0 && a.scale > 0.0f &&
         is_aligned(a.x) && is_aligned(a.y) && is_aligned(a.wq) && is_aligned(a.wo) && is_aligned(a.k) &&
         is_aligned(a.v);
}

size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

QfStatus qformer_cross_attention(int32_t device, const QfQFormerCrossAttention* args) {
  const QfQFormerCrossAttention& a = *args;
  const char* op = "qformerCrossAttention";
  DeviceContext& context = context_of(device);
  if (const QfStatus status = check_activation_dtype(context, op, a.dtype); status != QF_OK) return status;
  if (a.batch == 0 || a.rows_per_batch == 0) return QF_OK;
  if (a.batch * a.rows_per_batch > INT_MAX / 2 || a.batch * a.keys > INT_MAX / 2 ||
      a.heads * a.head_dim > INT_MAX / 2) {
    return fail(QF_UNSUPPORTED, "%s: %lld rows and %lld keys are more than one call takes", op,
                static_cast<long long>(a.batch * a.rows_per_batch), static_cast<long long>(a.batch * a.keys));
  }
  QFormerBlock block = {};
  block.args = a;
  block.hidden = static_cast<int32_t>(a.heads * a.head_dim);
  block.rows = static_cast<int32_t>(a.batch * a.num_query);
  const bool fused = fits_fused_kernels(a);
  const size_t elements = static_cast<size_t>(block.rows) * static_cast<size_t>(block.hidden);
  const size_t rows_bytes = padded(elements * qf_dtype_size(a.dtype)), sum_bytes = padded(elements * sizeof(float));
  void* scratch = nullptr;
  QfStatus status = context.scratch(sum_bytes + rows_bytes + (fused ? 0 : rows_bytes), &scratch);
  if (status == QF_OK && fused) status = context.counters(static_cast<size_t>((block.rows + 15) / 16), &block.arrivals);
  if (status != QF_OK) return status;
  char* memory = static_cast<char*>(scratch);
  block.sum = reinterpret_cast<float*>(memory);
  block.context = memory + sum_bytes;
  block.q = fused ? nullptr : memory + sum_bytes + rows_bytes;
  if (!fused) return launch_plain_block(context, block);
  if (a.dtype == QF_F16) return launch_fused_block<Half>(context, block);
  return launch_fused_block<BFloat16>(context, block);
}

}  // namespace qformer::cuda
