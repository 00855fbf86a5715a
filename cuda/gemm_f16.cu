// The tensor-core GEMM for f16 activations and weights.
#include "gemm_launch.cuh"

namespace qformer::cuda {

QfStatus launch_gemm_f16(DeviceContext& context, const char* name, const GemmArgs& args, const GemmPlan& plan) {
  return launch_gemm<Half>(context, name, args, plan);
}

}  // namespace qformer::cuda
