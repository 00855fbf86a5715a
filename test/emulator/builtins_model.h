// CUDA's builtins for emulated kernels: indices, barriers, shuffles, votes, fences. Included by prims/cuda.h.
//
// Shuffles and votes are warp collectives that order no memory; __syncwarp and __syncthreads do. Every call remembers
// where it was made, so lanes that meet in different calls are told apart.
#pragma once

#include <cmath>
#include <cstring>

#include "collectives.h"
#include "memory_order.h"

#define threadIdx (::qformer::emulator::machine.current->thread_index)
#define blockIdx (::qformer::emulator::machine.current->block->index)
#define blockDim (::qformer::emulator::machine.block)
#define gridDim (::qformer::emulator::machine.grid)

using qformer::emulator::Site;

inline void __syncthreads(Site site = Site()) { qformer::emulator::sync_threads(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, Site site = Site()) { qformer::emulator::sync_warp(mask, site); }
inline void __threadfence() { qformer::emulator::fence(); }
// Orders within the block only; the model does not grant order by it, as barriers do that work in our kernels.
inline void __threadfence_block() {}

namespace qformer::emulator {

// One lane's part of a shuffle; `result` is filled by the lane that arrives last.
template <class T>
struct ShuffleLane {
  T value, result;
  int from;
};

template <class T>
T shuffle(const char* what, uint32_t mask, T value, int from, Site site) {
  ShuffleLane<T> mine{value, value, from};
  meet(what, mask, mine, site, [mask, what, site](ShuffleLane<T>** lanes) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      ShuffleLane<T>& lane = *lanes[__builtin_ctz(rest)];
      if (!(mask >> lane.from & 1))
        kernel_fault(FaultKind::kDivergence, site, "%s reads lane %d, which is not in mask %08x", what, lane.from,
                     mask);
      lane.result = lanes[lane.from]->value;
    }
  });
  return mine.result;
}

inline int lane_id() { return static_cast<int>(machine.current->lane); }

}  // namespace qformer::emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, Site site = Site()) {
  const int lane = qformer::emulator::lane_id();
  return qformer::emulator::shuffle("__shfl_sync", mask, value, (lane & -width) | (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, Site site = Site()) {
  const int lane = qformer::emulator::lane_id(), from = lane ^ lane_mask;
  // A source beyond the end of the segment leaves the lane its own value; before it, it is read.
  return qformer::emulator::shuffle("__shfl_xor_sync", mask, value, from >= (lane & -width) + width ? lane : from,
                                    site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, Site site = Site()) {
  const int lane = qformer::emulator::lane_id(), from = lane + static_cast<int>(delta);
  return qformer::emulator::shuffle("__shfl_down_sync", mask, value, from >= (lane & -width) + width ? lane : from,
                                    site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, Site site = Site()) {
  const int lane = qformer::emulator::lane_id(), from = lane - static_cast<int>(delta);
  return qformer::emulator::shuffle("__shfl_up_sync", mask, value, from < (lane & -width) ? lane : from, site);
}

namespace qformer::emulator {

struct VoteLane {
  bool predicate;
  uint32_t ballot;
};

inline uint32_t vote(const char* what, uint32_t mask, bool predicate, Site site) {
  VoteLane mine{predicate, 0};
  meet(what, mask, mine, site, [mask](VoteLane** lanes) {
    uint32_t ballot = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      ballot |= static_cast<uint32_t>(lanes[lane]->predicate) << lane;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) lanes[__builtin_ctz(rest)]->ballot = ballot;
  });
  return mine.ballot;
}

}  // namespace qformer::emulator

inline unsigned __ballot_sync(unsigned mask, int predicate, Site site = Site()) {
  return qformer::emulator::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, Site site = Site()) {
  return qformer::emulator::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, Site site = Site()) {
  return qformer::emulator::vote("__all_sync", mask, predicate != 0, site) == mask;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
