// prims/math.h on the host: libm for the approximations, and warp reductions as one collective in the same order.
#pragma once

#include "builtins_model.h"

namespace qformer::cuda::prims {

inline constexpr uint32_t kFullWarp = 0xffffffffu;

inline float exp2_approx(float x) { return std::exp2(x); }
inline float rcp_approx(float x) { return 1.0f / x; }
inline float tanh_approx(float x) { return std::tanh(x); }
inline int32_t pinned(int32_t x) { return x; }

// The butterfly 16, 8, 4, 2, 1 of all lanes, done by the last one to arrive.
template <class T, class Combine>
T warp_butterfly(const char* what, T x, Site site, Combine combine) {
  T mine = x;
  emulator::meet(what, kFullWarp, mine, site, [combine](T** lanes) {
    T values[32];
    for (int lane = 0; lane < 32; ++lane) values[lane] = *lanes[lane];
    for (int step = 16; step > 0; step /= 2) {
      T next[32];
      for (int lane = 0; lane < 32; ++lane) next[lane] = combine(values[lane], values[lane ^ step]);
      memcpy(values, next, sizeof(values));
    }
    for (int lane = 0; lane < 32; ++lane) *lanes[lane] = values[lane];
  });
  return mine;
}

inline float warp_sum(float x, Site site = Site()) {
  return warp_butterfly("warp_sum", x, site, [](float a, float b) { return a + b; });
}
inline int32_t warp_sum(int32_t x, Site site = Site()) {
  return warp_butterfly("warp_sum", x, site, [](int32_t a, int32_t b) { return a + b; });
}
inline float warp_max(float x, Site site = Site()) {
  return warp_butterfly("warp_max", x, site, [](float a, float b) { return std::fmax(a, b); });
}
inline int32_t warp_max(int32_t x, Site site = Site()) {
  return warp_butterfly("warp_max", x, site, [](int32_t a, int32_t b) { return a > b ? a : b; });
}

}  // namespace qformer::cuda::prims
