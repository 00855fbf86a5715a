// Fetching what the next product reads while this one computes.
#pragma once

#include "kernels.h"

namespace qformer::cpu::QF_ISA {

// Fetches the bytes of an Ahead into L2, some lines at a time.
class Fetcher {
 public:
  explicit Fetcher(const Ahead& ahead) : row_(ahead.from), stride_(ahead.stride), bytes_(ahead.bytes) {
    rows_ = ahead.rows > 0 ? ahead.rows : 0;
  }

  bool done() const { return rows_ == 0 && line_ >= end_; }
  int64_t lines() const { return rows_ * ((bytes_ + 63) / 64); }

  __attribute__((always_inline)) void fetch(int64_t count) {
    for (; count > 0; count--) {
      if (line_ >= end_) {
        if (rows_ == 0) return;
        rows_--;
        line_ = row_;
        end_ = row_ + bytes_;
        row_ += stride_;
        // A row begins with loads. On Zen 5 that makes products of 32 rows 1.02 to 1.06 times as fast.
        load_byte(line_);
        load_byte(end_ - 1);
      }
      __builtin_prefetch(line_, 0, 1);
      line_ += 64;
    }
  }

 private:
  static void load_byte(const char* from) {
    const char byte = *static_cast<const volatile char*>(from);
    (void)byte;
  }

  const char* line_ = nullptr;
  const char* end_ = nullptr;
  const char* row_;
  int64_t stride_, bytes_, rows_;
};

// Fetches `lines` before each vector of groups: a burst would fill the buffers that reads of x need too.
struct SpreadFetcher {
  Fetcher all;
  int64_t lines;
};

// Another core may have the lines: to ask for each only when it is written would take its whole way.
inline void fetch_to_write(float* y, int64_t ldy, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(y + i * ldy + j, 1, 3);
  }
}

}  // namespace qformer::cpu::QF_ISA
