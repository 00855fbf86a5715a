// One linear call inside the CPU backend: what linear, gated_linear and patch_embedding share.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "kernels.h"

namespace qformer::cpu {

// y = act(x · wᵀ + bias) + residual, or act(x · wᵀ) * (x · w_upᵀ) where w_up is given. Fields as in QfLinear; where
// bits is not 0, w is quantised as in QfQuantLinear, in groups of a multiple of kQuantUnit columns, and there is no
// w_up.
struct LinearCall {
  const float* x;
  const void* w;
  const void* w_up = nullptr;
  const float* bias = nullptr;
  const float* residual = nullptr;
  float* y;
  int64_t m, n, k;
  int64_t ldx, ldw, ldr = 0, ldy;
  int32_t w_dtype, activation, math;
  const uint16_t* scales = nullptr;
  int64_t group = 0;
  int32_t bits = 0;
};

void run_linear(const LinearCall& call);

// run_linear where kernels().linear.bf16_tiles serves the call; m, n, k > 0.
void run_tiles(const LinearCall& call);

// The epilogue of m rows of y from `row` on and n columns from `column` on, its sums yet to come.
Finish finish_of(const LinearCall& call, int64_t row, int64_t m, int64_t column, int64_t n);

// Applies the epilogue to rows [0, m) and columns [column, column + n) of y, whose rows begin at row `row`. sums, up:
// raw products, rows ld_sums apart; up is null but for a gated call.
void finish_block(const LinearCall& call, const float* sums, const float* up, int64_t ld_sums, int64_t row, int64_t m,
                  int64_t column, int64_t n);

// The products of f32 rows with weights of w_dtype.
const DotKernels& dot_kernels(int32_t w_dtype, int32_t math);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace qformer::cpu
