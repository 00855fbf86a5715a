// The tensor-core GEMM for bf16 activations and weights.
#include "gemm_launch.cuh"

namespace qformer::cuda {

QfStatus launch_gemm_bf16(DeviceContext& context, const char* name, const GemmArgs& args, const GemmPlan& plan) {
  return launch_gemm<BFloat16>(context, name, args, plan);
}

}  // namespace qformer::cuda
