// Partial selection over one row of scores without sorting it: the k-th largest value, and the value at which the mass
// of the ascending tail passes a limit (nucleus sampling). A radix descent over order-preserving 32-bit keys: three
// passes (11, 11 and 10 bits) whatever the vocabulary, linear time, equal scores fall out as one group.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace qformer::cpu {

// Larger score, larger key; -0 and +0 share one, every NaN has the largest.
inline uint32_t order_key(float x) {
  if (x != x) return UINT32_MAX;
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) != 0 ? UINT32_MAX : 0x80000000u);
}

inline constexpr std::array<int, 3> kRadixShift = {21, 10, 0};
inline constexpr std::array<int, 3> kRadixBits = {11, 11, 10};

// Calls visit(digit, index) for every entry whose key agrees with `prefix` above the digits of `level`.
template <class Visit>
void for_each_digit(const float* x, int64_t n, int level, uint32_t prefix, Visit visit) {
  const int shift = kRadixShift[level], bits = kRadixBits[level];
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = order_key(x[i]);
    if (level == 0 || (key >> (shift + bits)) == prefix) visit((key >> shift) & mask, i);
  }
}

// Key of the k-th largest entry, 1 <= k <= n.
inline uint32_t kth_largest_key(const float* x, int64_t n, int64_t k) {
  uint32_t prefix = 0;
  for (int level = 0; level < 3; ++level) {
    std::array<int64_t, 2048> count{};
    for_each_digit(x, n, level, prefix, [&](uint32_t digit, int64_t) { ++count[digit]; });
    uint32_t digit = (1u << kRadixBits[level]) - 1;
    for (; digit > 0 && count[digit] < k; --digit) k -= count[digit];
    prefix = (prefix << kRadixBits[level]) | digit;
  }
  return prefix;
}

// Where the ascending tail ends: keys below `key` are in it, and of the entries with that very key the first `equal`.
struct TailCut {
  uint32_t key;
  int64_t equal;
};

// The longest ascending tail (equal scores by ascending index) whose mass, summed in f64 and rounded to f32, is at most
// `limit`. mass: [n] f32, not negative.
inline TailCut tail_of_mass(const float* x, const float* mass, int64_t n, float limit) {
  uint32_t prefix = 0;
  double below = 0.0;
  for (int level = 0; level < 3; ++level) {
    std::array<double, 2048> sum{};
    for_each_digit(x, n, level, prefix, [&](uint32_t digit, int64_t i) { sum[digit] += mass[i]; });
    const uint32_t digits = 1u << kRadixBits[level];
    uint32_t digit = 0;
    for (; digit < digits && static_cast<float>(below + sum[digit]) <= limit; ++digit) below += sum[digit];
    if (digit == digits) {
      const uint64_t end = (static_cast<uint64_t>(prefix) << kRadixBits[level]) + digits;
      const uint64_t key = end << kRadixShift[level];
      return {key > UINT32_MAX ? UINT32_MAX : static_cast<uint32_t>(key), 0};
    }
    prefix = (prefix << kRadixBits[level]) | digit;
  }
  int64_t equal = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (order_key(x[i]) != prefix) continue;
    below += mass[i];
    if (static_cast<float>(below) > limit) break;
    ++equal;
  }
  return {prefix, equal};
}

}  // namespace qformer::cpu
