// The tensor-core attention kernels for bf16 activations.
#include "attention_launch.cuh"

namespace qformer::cuda {

template QfStatus launch_row_attention<BFloat16>(DeviceContext& context, const AttentionProblem& problem);
template QfStatus launch_paged_attention<BFloat16>(DeviceContext& context, const AttentionProblem& problem);

}  // namespace qformer::cuda
