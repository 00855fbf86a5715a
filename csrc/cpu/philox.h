// Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3").
// A draw depends only on (seed, step), so it is the same whatever else is in the batch and on every device.
#pragma once

#include <cstdint>

namespace qformer {

// First output word for key = (seed_low, seed_high) and counter = (step, 0, 0, 0).
inline uint32_t philox4x32_10(uint32_t seed_low, uint32_t seed_high, uint32_t step) {
  uint32_t counter[4] = {step, 0, 0, 0};
  uint32_t key[2] = {seed_low, seed_high};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * counter[0];
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * counter[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
        static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
        static_cast<uint32_t>(product0),
    };
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter[0];
}

// u = (word + 0.5) * 2^-32 in f64: exact, and never 0 or 1.
inline double uniform_from_philox(uint32_t seed_low, uint32_t seed_high, uint32_t step) {
  return (static_cast<double>(philox4x32_10(seed_low, seed_high, step)) + 0.5) * 0x1p-32;
}

}  // namespace qformer
