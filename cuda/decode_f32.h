// linear and gated linear for few rows of f32 activations: the plain sibling of decode_linear.cu.
#pragma once

#include "decode_epilogue.cuh"
#include "decode_tokens.h"

namespace qformer::cuda {

struct DecodeF32Args {
  DecodeTokens tokens;  // rows on 16 bytes, no norm: see prepare_tokens
  DecodeOutput out;     // y_f32
  const void* w;        // [n, k] f32, f16 or bf16, rows ldw apart
  const void* w_up;     // the second matrix of a gated product, or null
  int64_t ldw;
  bool round_x;  // QF_MATH_BF16: x is rounded to bf16 before the product
};

QfStatus decode_f32(DeviceContext& context, const char* name, const DecodeF32Args& args, int32_t w_dtype);

}  // namespace qformer::cuda
