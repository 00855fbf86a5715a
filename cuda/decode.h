// The decode linear family: products of few rows (the tokens of a decode step or of a short prompt) with weights that
// are streamed once. linear.cu and gated_linear come here while decode_serves() says so.
//
// Invariance: a row's bits are the same for every m that decode_serves, whatever rows stand beside it. A product of
// more rows (gemm_kernel.cuh) sums k in another order and may differ in the last bits.
#pragma once

#include "backend/backend.h"

namespace qformer::cuda {

// Rows up to which a product is bound by the bytes of its weights. f32 activations run on FMAs, where a tiled product
// takes over earlier.
inline constexpr int64_t kDecodeRows = 32;
inline constexpr int64_t kDecodeRowsF32 = 16;

inline bool decode_serves(int64_t m, int32_t dtype) { return m <= (dtype == QF_F32 ? kDecodeRowsF32 : kDecodeRows); }

// As the ops linear and gated_linear, for m that decode_serves. They take one scratch of the context.
QfStatus decode_linear(int32_t device, const QfLinear* args);
QfStatus decode_gated_linear(int32_t device, const QfGatedLinear* args);

}  // namespace qformer::cuda
