// How the CPU stores weights that are quantised in groups of whole units of kQuantUnit columns, in the bytes that
// QfQuantize counts for them.
//
// Units lie side by side, so that lanes of a vector belong to units of their own and nothing is added up across lanes.
// A row is cut into chunks of kChunkUnits units, the last one shorter. A chunk is its words, 32 bits of each of its
// units in turn: [word][unit][4 bytes]. Levels are stored plus kQuantZero, as unsigned numbers. A word has 4 bytes,
// byte j:
//   int8: column 4 * word + j of the unit
//   int4: column 8 * word + j in the low half, column 8 * word + 4 + j in the high half
#pragma once

#include <stdint.h>

namespace qformer::cpu {

inline constexpr int64_t kQuantUnit = 64;   // columns of x that share a scale
inline constexpr int64_t kChunkUnits = 16;  // lanes of the widest vector

constexpr int quant_zero(int32_t bits) { return bits == 8 ? 128 : 8; }
constexpr int64_t unit_words(int32_t bits) { return kQuantUnit * bits / 32; }

// Where units of a row of `units` units lie: word i of unit `first` at byte from + i * stride, the next units of its
// chunk behind it.
struct UnitPlace {
  int64_t from, stride;
};

inline UnitPlace unit_place(int64_t first, int64_t units, int32_t bits) {
  const int64_t chunk = first / kChunkUnits * kChunkUnits;
  const int64_t width = units - chunk < kChunkUnits ? units - chunk : kChunkUnits;
  return {4 * (chunk * unit_words(bits) + first - chunk), 4 * width};
}

}  // namespace qformer::cpu
