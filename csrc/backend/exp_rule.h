// exp of the weights that sampling adds up, as constants: every backend evaluates them by the same steps with fused
// multiply-adds, so that a weight has the same bits everywhere (cpu/simd_math.h, cuda/sampling_row.cuh).
//
//   n = round_even(x * kLog2E); r = (x - n * kLn2High) - n * kLn2Low
//   exp(x) = (1 + (r + r² * (kC0 + r * (kC1 + … r * kC4)))) * 2^n
//
// Own fit by least squares on Chebyshev nodes over [-ln2/2, ln2/2]; no functions here, so that any instruction set may
// include it.
#pragma once

namespace qformer::exp_rule {

constexpr float kLowest = -105.0f, kHighest = 89.0f;  // beyond: 0 and infinity
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kC0 = 0.5f, kC1 = 0.16666517f, kC2 = 0.04166626f, kC3 = 0.008369157f, kC4 = 0.0013946455f;

}  // namespace qformer::exp_rule
