// The host side that the attention ops share: which kernel takes a problem, and the launchers of each, one source file
// per activation dtype so that they compile side by side.
#pragma once

#include "attention_problem.cuh"
#include "runtime/device.h"

namespace qformer::cuda {

// Whether the tensor-core kernels read this problem: 16-bit q, k and v in rows of whole 16-byte chunks, head_dim up to
// 128. They fold the scale into the exponent and need it positive.
bool fits_tensor_cores(const AttentionProblem& problem, int32_t dtype, int32_t cache_dtype);

// By rows; T: Half or BFloat16. The problem fits_tensor_cores.
template <class T>
QfStatus launch_row_attention(DeviceContext& context, const AttentionProblem& problem);

// The paged kernel of the same dtypes.
template <class T>
QfStatus launch_paged_attention(DeviceContext& context, const AttentionProblem& problem);

// Any dtype of q and o, any of k and v, any head_dim that fits shared memory. `op`: its name in messages.
QfStatus launch_plain_attention(DeviceContext& context, const char* op, const AttentionProblem& problem, int32_t dtype,
                                int32_t cache_dtype);

// QF_UNSUPPORTED where the device lacks arithmetic in `dtype`.
QfStatus check_activation_dtype(const DeviceContext& context, const char* op, int32_t dtype);

}  // namespace qformer::cuda
