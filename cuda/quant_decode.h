// Products of few rows with quantised weights, unpacked in registers on their way from memory to the tensor cores.
//
// They give the bits of the product with the widened weights (quant_linear.cu); it is a choice of speed alone.
#pragma once

#include "gemm.h"

namespace qformer::cuda {

// As the op quantize stores them.
struct QuantWeights {
  const uint8_t* q;        // [n, k * bits / 8]
  const uint16_t* scales;  // [n, k / group] bf16
  int32_t group, bits;
};

// 16-bit activations on 16 bytes, few rows (sm_75: up to 16), groups of 32, 64, 128, … columns.
bool quant_decode_serves(const DeviceContext& context, const GemmArgs& args, const QuantWeights& weights,
                         int32_t dtype);

// As run_gemm; `args` says nothing of w. It needs no workspace.
QfStatus run_quant_decode(DeviceContext& context, const char* name, GemmArgs args, const QuantWeights& weights,
                          int32_t dtype);

}  // namespace qformer::cuda
