// Per-ISA part of the rotary embedding: rotates the pairs (j, j + head_dim / 2) of all heads of one token.
// Memory-bound: x is read once and y written once; the token's cosines and sines stay in L1.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

inline void rope_token(const float* x, const float* cosine, const float* sine, float* y, int64_t heads,
                       int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h) {
    const float* low = x + h * head_dim;
    float* out = y + h * head_dim;
    for (int64_t j = 0; j < half; j += kLanes) {
      const int64_t count = half - j < kLanes ? half - j : kLanes;
      const Vf c = load_partial(cosine + j, count), s = load_partial(sine + j, count);
      const Vf a = load_partial(low + j, count), b = load_partial(low + half + j, count);
      store_partial(out + j, fnma(b, s, a * c), count);
      store_partial(out + half + j, fma(a, s, b * c), count);
    }
  }
}

constexpr RopeKernels kRopeKernels = {&rope_token};

}  // namespace qformer::cpu::QF_ISA
