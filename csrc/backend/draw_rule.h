// The arithmetic by which every backend warps and draws, so that the same scores, seed and step give the same token on
// each of them. A weight w = exp(score - max), in [0, 1], counts as the integer floor(w * 2^40): sums of integers do
// not depend on their order, so a backend may add in parallel, and a running sum never falls. f64 is only used in
// single IEEE operations. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define QF_RULE __host__ __device__ inline
#else
#define QF_RULE inline
#endif

namespace qformer {

// A row of up to 2^23 weights of 2^40 each stays below 2^63.
constexpr int64_t kMaxVocab = int64_t{1} << 23;

// Larger score, larger key; -0 and +0 share one, every NaN has the largest.
QF_RULE uint32_t order_key(float x) {
  if (x != x) return 0xffffffffu;
  const float positive_zero = x + 0.0f;
  uint32_t bits;
  memcpy(&bits, &positive_zero, 4);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

QF_RULE uint64_t mass_of(float weight) { return static_cast<uint64_t>(static_cast<int64_t>(weight * 0x1p40f)); }

// True where a tail of mass `below` out of `total` has a probability of at most `limit`, in f32.
QF_RULE bool tail_fits(uint64_t below, uint64_t total, float limit) {
  return static_cast<float>(static_cast<double>(below) / static_cast<double>(total)) <= limit;
}

// The most that top-p drops, as a probability.
QF_RULE float tail_limit(float top_p) { return static_cast<float>(1.0 - static_cast<double>(top_p)); }

// First output word for key = (seed_low, seed_high) and counter = (step, 0, 0, 0).
QF_RULE uint32_t philox4x32_10(uint32_t seed_low, uint32_t seed_high, uint32_t step) {
  uint32_t c0 = step, c1 = 0, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ seed_low;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ seed_high;
    c3 = static_cast<uint32_t>(product0);
    seed_low += 0x9E3779B9u;
    seed_high += 0xBB67AE85u;
  }
  return c0;
}

// floor(u * total) with u = (word + 0.5) * 2^-32, for total < 2^63. The token is the first id at which the running mass
// exceeds it: one exists, since u < 1.
QF_RULE uint64_t draw_target(uint32_t word, uint64_t total) {
  const uint64_t low = uint64_t{word} * (total & 0xffffffffu), half = total >> 1;
  const uint64_t carry = ((low & 0xffffffffu) + (half & 0xffffffffu)) >> 32;
  return uint64_t{word} * (total >> 32) + (low >> 32) + (half >> 32) + carry;
}

}  // namespace qformer
