// The product of f32 activations with f32, f16 or bf16 weights, on FMAs.
#pragma once

#include "gemm.h"

namespace qformer::cuda {

QfStatus launch_gemm_f32(DeviceContext& context, const char* name, const GemmArgs& args, int32_t w_dtype);

}  // namespace qformer::cuda
