// Rows of activations in chunks of 8 elements, and the threads that share a row.
//
// A chunk is one 16-byte access for 16-bit types and two for f32 where the row allows it (`wide`), else 8 single ones
// with bounds. RowGroup is the warp or the block that owns a row; its sums take one fixed order for a given number of
// columns, so a row's result does not depend on the others.
#pragma once

#include "prims/global.h"
#include "prims/math.h"
#include "prims/shared.h"

namespace qformer::cuda {

constexpr int kChunk = 8;

// True where every chunk of every row starts on 16 bytes: base address and distance of the rows.
template <class T>
bool rows_are_wide(const T* base, int64_t rows, int64_t ld) {
  const bool pitch = rows <= 1 || ld * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  return pitch && reinterpret_cast<uintptr_t>(base) % 16 == 0;
}

// v = row[i, i + 8), `fill` past the end
template <class T>
QF_DEVICE void load_chunk(Global<const T> row, int64_t i, int64_t cols, bool wide, float (&v)[kChunk],
                          float fill = 0.0f) {
  if (wide && i + kChunk <= cols) {
    constexpr int kPart = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kChunk / kPart; ++part) {
      const auto packed = row.template load_vec<kPart>(i + part * kPart);
#pragma unroll
      for (int j = 0; j < kPart; ++j) v[part * kPart + j] = to_float(packed[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = i + j < cols ? to_float(row.load(i + j)) : fill;
  }
}

// row[i, i + 8) = v, nothing past the end
template <class T>
QF_DEVICE void store_chunk(Global<T> row, int64_t i, int64_t cols, bool wide, const float (&v)[kChunk]) {
  if (wide && i + kChunk <= cols) {
    constexpr int kPart = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kChunk / kPart; ++part) {
      Vec<T, kPart> packed;
#pragma unroll
      for (int j = 0; j < kPart; ++j) packed[j] = from_float<T>(v[part * kPart + j]);
      row.template store_vec<kPart>(i + part * kPart, packed);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (i + j < cols) row.store(i + j, from_float<T>(v[j]));
    }
  }
}

// The threads of one row: a warp (rows of a block are then `warps` apart) or the whole block.
template <bool kWarpPerRow>
struct RowGroup {
  static constexpr int kMaxWarps = 32;
  static constexpr int kReductions = 4;  // reductions per row between which no slot is used twice

  int64_t row;
  int lane;  // among the threads of the row
  int size;
  Shared<float> slots;
  int used = 0;

  QF_DEVICE RowGroup() {
    SharedMemory shared;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if constexpr (kWarpPerRow) {
      row = static_cast<int64_t>(blockIdx.x) * (threads / 32) + thread / 32;
      lane = thread % 32;
      size = 32;
    } else {
      row = blockIdx.x;
      lane = thread;
      size = threads;
      slots = shared.take<float>(kMaxWarps * kReductions);
    }
  }

  // The sum over the row's threads, the same bits in each: butterfly within a warp, then the warps in order.
  QF_DEVICE float sum(float x) {
    x = warp_sum(x);
    if constexpr (kWarpPerRow) return x;
    const Shared<float> slot = exchange(x);
    float total = 0.0f;
    for (int warp = 0; warp < size / 32; ++warp) total += slot[warp];
    return total;
  }

  // Both sums for one barrier.
  QF_DEVICE void sums(float& x, float& y) {
    x = warp_sum(x);
    y = warp_sum(y);
    if constexpr (kWarpPerRow) return;
    const Shared<float> slot = next_slots(), other = next_slots();
    if (lane % 32 == 0) {
      slot.store(lane / 32, x);
      other.store(lane / 32, y);
    }
    __syncthreads();
    x = y = 0.0f;
    for (int warp = 0; warp < size / 32; ++warp) {
      x += slot[warp];
      y += other[warp];
    }
  }

  QF_DEVICE float max(float x) {
    x = warp_max(x);
    if constexpr (kWarpPerRow) return x;
    const Shared<float> slot = exchange(x);
    float best = slot[0];
    for (int warp = 1; warp < size / 32; ++warp) best = fmaxf(best, slot[warp]);
    return best;
  }

  static constexpr size_t bytes() { return kWarpPerRow ? 0 : shared_bytes<float>(kMaxWarps * kReductions); }

 private:
  QF_DEVICE Shared<float> next_slots() {
    const Shared<float> slot = slots + used * kMaxWarps;
    used = (used + 1) % kReductions;
    return slot;
  }

  QF_DEVICE Shared<float> exchange(float x) {
    const Shared<float> slot = next_slots();
    if (lane % 32 == 0) slot.store(lane / 32, x);
    __syncthreads();
    return slot;
  }
};

// Which kernel serves rows of `cols` columns: short rows take a warp each, longer ones a block that holds them in
// registers, and any longer row is read again in each pass. A function of cols alone, hence batch invariant.
struct RowShape {
  bool warp_per_row;
  int threads;  // of a block
  int chunks;   // per thread, 0: not held
};

constexpr int kWarpsOfRows = 4;  // rows of a block where each has a warp

inline RowShape row_shape(int64_t cols) {
  const auto chunks = static_cast<int>((cols + kChunk - 1) / kChunk);
  if (cols <= 1024) return {true, 32 * kWarpsOfRows, chunks <= 32 ? 1 : chunks <= 64 ? 2 : 4};
  if (cols <= 4096) return {false, (chunks + 31) / 32 * 32, 1};
  if (cols <= 16384) return {false, 512, chunks <= 1024 ? 2 : 4};
  return {false, 1024, 0};
}

// Warps that share a row.
inline int32_t row_warps(int64_t cols) {
  const RowShape shape = row_shape(cols);
  return shape.warp_per_row ? 1 : shape.threads / 32;
}

inline dim3 grid_of_rows(const RowShape& shape, int64_t rows) {
  const int64_t per_block = shape.warp_per_row ? kWarpsOfRows : 1;
  return dim3(static_cast<unsigned>((rows + per_block - 1) / per_block));
}

}  // namespace qformer::cuda
