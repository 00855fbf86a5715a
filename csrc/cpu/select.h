// Partial selection over one row of scores without sorting it: the k-th largest value, and the value at which the mass
// of the ascending tail passes a limit (nucleus sampling). A radix descent over order-preserving 32-bit keys: three
// passes (11, 11 and 10 bits) whatever the vocabulary, linear time, equal scores fall out as one group.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "backend/draw_rule.h"

namespace qformer::cpu {

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

// Where the ascending tail (equal scores by ascending index) ends: keys below `key` are in it, and of the entries with
// that very key the first `equal`.
struct TailCut {
  uint32_t key;
  int64_t equal;
};

inline TailCut shorter(const TailCut& a, const TailCut& b) {
  return a.key != b.key ? (a.key < b.key ? a : b) : TailCut{a.key, std::min(a.equal, b.equal)};
}

// Calls drop(index) for every entry of the tail.
template <class Drop>
void for_each_in_tail(const float* x, int64_t n, TailCut cut, Drop drop) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = order_key(x[i]);
    if (key < cut.key || (key == cut.key && cut.equal-- > 0)) drop(i);
  }
}

// The tail that leaves the `keep` last entries, 1 <= keep <= n; key: kth_largest_key(x, n, keep)
inline TailCut tail_leaving(const float* x, int64_t n, int64_t keep, uint32_t key) {
  int64_t above = 0, equal = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t other = order_key(x[i]);
    above += other > key;
    equal += other == key;
  }
  return {key, equal - (keep - above)};
}

// The longest tail whose mass fits `limit` (tail_fits). weight: [n], not negative.
inline TailCut tail_of_mass(const float* x, const float* weight, int64_t n, uint64_t total, float limit) {
  uint32_t prefix = 0;
  uint64_t below = 0;
  for (int level = 0; level < 3; ++level) {
    std::array<uint64_t, 2048> sum{};
    for_each_digit(x, n, level, prefix, [&](uint32_t digit, int64_t i) { sum[digit] += mass_of(weight[i]); });
    const uint32_t digits = 1u << kRadixBits[level];
    uint32_t digit = 0;
    for (; digit < digits && tail_fits(below + sum[digit], total, limit); ++digit) below += sum[digit];
    if (digit == digits) return {UINT32_MAX, n};  // only where the whole row fits
    prefix = (prefix << kRadixBits[level]) | digit;
  }
  int64_t equal = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (order_key(x[i]) != prefix) continue;
    below += mass_of(weight[i]);
    if (!tail_fits(below, total, limit)) break;
    ++equal;
  }
  return {prefix, equal};
}

}  // namespace qformer::cpu
