// The tensor-core attention kernels for f16 activations.
#include "attention_launch.cuh"

namespace qformer::cuda {

template QfStatus launch_row_attention<Half>(DeviceContext& context, const AttentionProblem& problem);
template QfStatus launch_paged_attention<Half>(DeviceContext& context, const AttentionProblem& problem);

}  // namespace qformer::cuda
