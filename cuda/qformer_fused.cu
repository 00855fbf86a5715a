// The launcher of the fused cross-attention block.
#include "qformer_fused.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {

template <class T>
QfStatus launch_fused_block(DeviceContext& context, const QFormerBlock& block) {
  const QfQFormerCrossAttention& a = block.args;
  const dim3 attend(static_cast<uint32_t>((a.num_query + 15) / 16), static_cast<uint32_t>(a.heads),
                    static_cast<uint32_t>(a.batch));
  const QfStatus status = launch("qformerCrossAttention", context.stream, project_attend_kernel<T>, attend,
                                 dim3(kBlockThreads), ProjectAttendShape<T>::kSharedBytes, block);
  if (status != QF_OK) return status;
  const dim3 normalize(static_cast<uint32_t>((block.rows + 15) / 16),
                       static_cast<uint32_t>(block.hidden / kBlockHeadDim + 1));
  return launch("qformerCrossAttention", context.stream, project_normalize_kernel<T>, normalize, dim3(kBlockThreads),
                shared_bytes<int32_t>(1), block);
}

template QfStatus launch_fused_block<Half>(DeviceContext& context, const QFormerBlock& block);
template QfStatus launch_fused_block<BFloat16>(DeviceContext& context, const QFormerBlock& block);

}  // namespace qformer::cuda
