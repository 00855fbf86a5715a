// exp, erf, tanh and the activations on Vf, from the operations of simd.h alone.
//
// Errors against exact values: exp 1 ulp where the result is normal (subnormal results are rounded twice), erf and tanh
// 3 ulp. NaN stays NaN. Coefficients are our own fits: exp as in backend/exp_rule.h, erf and tanh rational in x² by
// iteratively reweighted least squares of the relative error; outside the fitted range they are ±1 in f32.
#pragma once

#include "backend/backend.h"
#include "backend/exp_rule.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

template <int N>
inline Vf horner(const float (&c)[N], Vf x) {
  Vf sum = broadcast(c[N - 1]);
  for (int i = N - 2; i >= 0; i--) sum = fma(sum, x, broadcast(c[i]));
  return sum;
}

// exp(-inf) = 0, overflow gives inf. 2^n is applied in two halves, since n itself may leave the exponent range.
inline Vf exp(Vf x) {
  constexpr float kPoly[] = {exp_rule::kC0, exp_rule::kC1, exp_rule::kC2, exp_rule::kC3, exp_rule::kC4};
  x = vmax(broadcast(exp_rule::kLowest), vmin(broadcast(exp_rule::kHighest), x));
  const Vf n = round_even(x * broadcast(exp_rule::kLog2E));
  Vf r = fnma(n, broadcast(exp_rule::kLn2High), x);
  r = fnma(n, broadcast(exp_rule::kLn2Low), r);
  const Vf p = fma(r * r, horner(kPoly, r), r) + broadcast(1.0f);
  const Vf half = round_even(n * broadcast(0.5f));
  return p * pow2(half) * pow2(n - half);
}

inline Vf clamp_magnitude(Vf x, float limit) { return vmax(broadcast(-limit), vmin(broadcast(limit), x)); }

// y where |x| <= limit, else ±1 by the sign of x: past the fitted range the quotient may be one unit short of it.
inline Vf saturate_beyond(Vf x, float limit, Vf y) {
  const Vf one = broadcast(1.0f);
  y = select(less(broadcast(limit), x), one, clamp_magnitude(y, 1.0f));
  return select(less(x, broadcast(-limit)), zero() - one, y);
}

inline Vf erf(Vf x) {
  constexpr float kNumerator[] = {1.1283791f, 0.19039936f, 0.052747786f, 0.0037653106f, 0.00028487563f, 2.0501404e-06f};
  constexpr float kDenominator[] = {1.0f, 0.5020698f, 0.11410618f, 0.014968607f, 0.0011624607f, 3.809189e-05f};
  constexpr float kLimit = 3.92f;
  const Vf c = clamp_magnitude(x, kLimit);
  const Vf s = c * c;
  return saturate_beyond(x, kLimit, c * horner(kNumerator, s) / horner(kDenominator, s));
}

inline Vf tanh(Vf x) {
  constexpr float kNumerator[] = {1.0f, 0.13679928f, 0.0038683435f, 2.8007766e-05f, 3.0585706e-08f, -1.2203928e-11f};
  constexpr float kDenominator[] = {1.0f, 0.4701326f, 0.027245898f, 0.00039386586f, 1.2873874e-06f};
  constexpr float kLimit = 9.02f;
  const Vf c = clamp_magnitude(x, kLimit);
  const Vf s = c * c;
  return saturate_beyond(x, kLimit, c * horner(kNumerator, s) / horner(kDenominator, s));
}

inline Vf gelu_erf(Vf x) {
  const Vf half = x * broadcast(0.5f);
  return fma(half, erf(x * broadcast(0.70710678f)), half);
}

inline Vf gelu_tanh(Vf x) {
  const Vf half = x * broadcast(0.5f);
  const Vf inner = x * fma(x * x, broadcast(0.044715f * 0.79788456f), broadcast(0.79788456f));
  return fma(half, tanh(inner), half);
}

inline Vf relu(Vf x) { return vmax(zero(), x); }

inline Vf silu(Vf x) { return x / (broadcast(1.0f) + exp(zero() - x)); }

// `kind` is a QfActivation.
inline Vf activate(Vf x, int32_t kind) {
  switch (kind) {
    case QF_ACT_GELU_ERF:
      return gelu_erf(x);
    case QF_ACT_GELU_TANH:
      return gelu_tanh(x);
    case QF_ACT_RELU:
      return relu(x);
    case QF_ACT_SILU:
      return silu(x);
    default:
      return x;
  }
}

}  // namespace qformer::cpu::QF_ISA
