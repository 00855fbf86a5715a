// Reproducible test data: floats in [-scale, scale) from a fixed multiplicative generator, the same on every platform.
#pragma once

#include <cstdint>
#include <vector>

namespace qformer::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}

  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }

  float uniform(float scale) { return (static_cast<float>(next() >> 8) * 0x1p-23f - 1.0f) * scale; }

  std::vector<float> floats(int64_t count, float scale = 1.0f) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = uniform(scale);
    return values;
  }

 private:
  uint64_t state_;
};

}  // namespace qformer::test
