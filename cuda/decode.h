// Products of few rows with 16-bit weights that are streamed once: the tokens of a decode step, the queries of a
// Q-Former.
//
// They give the bits of the GEMM (gemm_kernel.cuh): the same chunks of k, the same mma chain along each, the same sum
// of the chunks, the same epilogue. run_gemm comes here while decode_serves says so; it is a choice of speed alone.
// From 33 rows on the GEMM's 64 × 64 tile serves, which reads as many bytes of x as of weights, what 32 rows cost here.
#pragma once

#include "gemm.h"

namespace qformer::cuda {

inline constexpr int32_t kDecodeRows = 32;

// 16-bit operands on 16 bytes, and few rows.
bool decode_serves(const GemmArgs& args, int32_t dtype);

// And few enough that the kernel normalises them itself, with args.norm_weight.
bool decode_normalises(const DeviceContext& context, const GemmArgs& args, int32_t dtype);

// As run_gemm, `args` with its vector fields filled in. It needs no workspace.
QfStatus run_decode(DeviceContext& context, const char* name, const GemmArgs& args, int32_t dtype);

}  // namespace qformer::cuda
