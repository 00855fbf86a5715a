// One row of scores and the block that works on it: 1024 threads walk the row, 16 bytes each where the row allows it,
// and combine integers, whose sums do not depend on the order. Integers are what makes a draw the same on every
// backend: see backend/draw_rule.h.
#pragma once

#include "backend/draw_rule.h"
#include "backend/exp_rule.h"
#include "row_chunks.cuh"

namespace qformer::cuda {

constexpr int kRowThreads = 1024;
constexpr int kRowWarps = kRowThreads / 32;
constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;  // order_key(-inf)
constexpr uint32_t kKeyOfInfinity = 0xff800000u;       // order_key(inf); NaN is above

QF_DEVICE float power_of_two(float n) { return bit_cast<float>((static_cast<int32_t>(n) + 127) << 23); }

// exp(x) by the steps of backend/exp_rule.h: the CPU's bits.
QF_DEVICE float exp_weight(float x) {
  using namespace exp_rule;
  x = fmaxf(kLowest, fminf(kHighest, x));
  const float n = rintf(x * kLog2E);
  float r = fmaf(-n, kLn2High, x);
  r = fmaf(-n, kLn2Low, r);
  const float poly = fmaf(fmaf(fmaf(fmaf(kC4, r, kC3), r, kC2), r, kC1), r, kC0);
  const float p = fmaf(r * r, poly, r) + 1.0f;
  const float half = rintf(n * 0.5f);
  return p * power_of_two(half) * power_of_two(n - half);
}

// The score an order_key came from; -0 comes back as 0.
QF_DEVICE float score_of_key(uint32_t key) {
  return bit_cast<float>(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

QF_DEVICE bool is_finite_key(uint32_t key) { return key > kKeyOfMinusInfinity && key < kKeyOfInfinity; }

struct ScoreRow {
  Global<const float> x;
  int32_t vocab;
  bool wide;  // 16-byte aligned
};

// Calls visit(id, score) for the ids of this thread, the same ones in every walk.
template <class Visit>
QF_DEVICE void for_each_score(const ScoreRow& row, const Visit& visit) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t vectors = row.wide ? row.vocab / 4 : 0;
#pragma unroll 2
  for (int32_t v = thread; v < vectors; v += kRowThreads) {
    const Vec<float, 4> scores = row.x.load_vec<4>(v * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) visit(v * 4 + j, scores[j]);
  }
  for (int32_t i = vectors * 4 + thread; i < row.vocab; i += kRowThreads) visit(i, row.x[i]);
}

// y[id] = map(id, x[id]), by the same threads as for_each_score; y may equal x.
template <class Map>
QF_DEVICE void map_scores(const ScoreRow& row, Global<float> y, const Map& map) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t vectors = row.wide ? row.vocab / 4 : 0;
  for (int32_t v = thread; v < vectors; v += kRowThreads) {
    Vec<float, 4> scores = row.x.load_vec<4>(v * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[j] = map(v * 4 + j, scores[j]);
    y.store_vec<4>(v * 4, scores);
  }
  for (int32_t i = vectors * 4 + thread; i < row.vocab; i += kRowThreads) y.store(i, map(i, row.x[i]));
}

QF_DEVICE uint64_t warp_add(uint64_t x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kFullWarp, x, mask);
  return x;
}

QF_DEVICE uint64_t warp_largest(uint64_t x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint64_t other = __shfl_xor_sync(kFullWarp, x, mask);
    x = other > x ? other : x;
  }
  return x;
}

// The sum over the lanes up to this one.
QF_DEVICE uint64_t warp_running_sum(uint64_t x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t other = __shfl_up_sync(kFullWarp, x, distance);
    if (lane >= distance) x += other;
  }
  return x;
}

// One value per warp, exchanged through shared memory: afterwards lane w of every warp holds the value of warp w.
// Consecutive exchanges alternate between two sets of slots, so one barrier each is enough.
class WarpExchange {
 public:
  static constexpr int kSlots = 2 * kRowWarps;

  QF_DEVICE explicit WarpExchange(Shared<uint64_t> slots) : slots_(slots) {}

  QF_DEVICE uint64_t operator()(uint64_t of_warp) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const Shared<uint64_t> slots = slots_ + turn_ * kRowWarps;
    turn_ ^= 1;
    if (lane == 0) slots.store(warp, of_warp);
    __syncthreads();
    return slots[lane];
  }

  QF_DEVICE uint64_t add(uint64_t x) { return warp_add((*this)(warp_add(x))); }
  QF_DEVICE uint64_t largest(uint64_t x) { return warp_largest((*this)(warp_largest(x))); }

 private:
  Shared<uint64_t> slots_;
  int turn_ = 0;
};

}  // namespace qformer::cuda
