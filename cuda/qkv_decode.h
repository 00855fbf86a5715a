// The front half of a decoder layer's attention for few tokens, in one kernel.
#pragma once

#include "gemm.h"

namespace qformer::cuda {

// 16-bit operands on 16 bytes, few tokens, and heads of whole units of 32 rows.
bool qkv_decode_serves(const QfQkvAppend& op);

// True where the kernel normalises the tokens itself; else `op`.norm_weight must be null and `op`.x normalised.
bool qkv_decode_normalises(const DeviceContext& context, const QfQkvAppend& op);

// The op, for what qkv_decode_serves; the bits of the separate ops.
QfStatus run_qkv_decode(DeviceContext& context, const QfQkvAppend& op);

}  // namespace qformer::cuda
