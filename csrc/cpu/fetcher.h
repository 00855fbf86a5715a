// Fetching what the next product reads while this one computes.
#pragma once

#include "kernels.h"

namespace qformer::cpu::QF_ISA {

// Fetches the bytes of an Ahead into L2, some lines at a time.
struct Fetcher {
  Ahead ahead;
  int64_t row = 0, at = 0;

  int64_t lines() const { return ahead.rows > 0 ? ahead.rows * ((ahead.bytes + 63) / 64) : 0; }
  void fetch(int64_t count) {
    for (; count > 0 && row < ahead.rows; count--) {
      __builtin_prefetch(ahead.from + row * ahead.stride + at, 0, 1);
      at += 64;
      if (at >= ahead.bytes) at = 0, row++;
    }
  }
};

// Another core may have the lines: to ask for each only when it is written would take its whole way.
inline void fetch_to_write(float* y, int64_t ldy, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(y + i * ldy + j, 1, 3);
  }
}

}  // namespace qformer::cpu::QF_ISA
