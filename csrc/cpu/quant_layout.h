// How the CPU stores weights that are quantised in groups of whole units of kQuantUnit columns, in the bytes that
// QfQuantize counts for them.
//
// Rows lie in blocks of kQuantRows, the last one shorter, so that lanes of a vector belong to rows of their own and
// nothing is added up across lanes. A block is its words one after the other, 32 bits of each of its rows in turn:
// [unit][word][row][4 bytes]; its scales are [group][row]. Levels are stored plus quant_zero, as unsigned numbers. A
// word has 4 bytes, byte j:
//   int8: column 4 * word + j of the unit
//   int4: column 8 * word + j in the low half, column 8 * word + 4 + j in the high half
#pragma once

#include <stdint.h>

namespace qformer::cpu {

inline constexpr int64_t kQuantUnit = 64;  // columns of x that share a scale
inline constexpr int64_t kQuantRows = 16;  // lanes of the widest vector

constexpr int quant_zero(int32_t bits) { return bits == 8 ? 128 : 8; }
constexpr int64_t unit_words(int32_t bits) { return kQuantUnit * bits / 32; }

// A row among n: the first row of its block, its place there, and the rows of the block.
struct QuantPlace {
  int64_t block, row, rows;
};

inline QuantPlace quant_place(int64_t row, int64_t n) {
  const int64_t block = row / kQuantRows * kQuantRows;
  return {block, row - block, n - block < kQuantRows ? n - block : kQuantRows};
}

}  // namespace qformer::cpu
