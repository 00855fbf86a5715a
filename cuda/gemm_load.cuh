// Global → shared for one k-step of a block's tiles of x and w.
//
// Every thread copies the same chunk of rows that lie kRowStep apart, so it keeps one pointer per matrix and a 32-bit
// offset per row. Rows past the end are clamped to the last one instead of being masked: their products are never
// stored, and the loads hit the cache. Only the tail of k is zero-filled.
//
// A gated product's tile of w is gate rows above as many up rows. kAligned false reads element by element (rows that
// are not 16-byte aligned, k % 8 != 0).
#pragma once

#include "gemm.h"
#include "gemm_tile.cuh"
#include "prims/copy_async.h"

namespace qformer::cuda {

template <class T, class Tile, bool kGated, bool kAligned>
class TileLoader {
 public:
  // `row` and `column`: the first row of x and the first output column of this block.
  QF_DEVICE TileLoader(const GemmArgs& args, int row, int column) {
    const int thread = static_cast<int>(threadIdx.x);
    const int first = thread / Tile::kChunks;
    const int chunk = thread % Tile::kChunks;
    limit_ = args.k - chunk * kCopyElements;
    destination_ = Tile::offset(first, chunk);
    x_ = Global<const T>(static_cast<const T*>(args.x)) + row * args.ldx;
    for (int i = 0; i < kXCopies; ++i) {
      const int r = min(first + i * kRowStep, args.m - 1 - row);
      x_offsets_[i] = r * static_cast<int>(args.ldx) + chunk * kCopyElements;
    }
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      w_[matrix] = Global<const T>(static_cast<const T*>(matrix == 0 ? args.w : args.w_up)) + column * args.ldw;
    }
    for (int i = 0; i < kWCopies; ++i) {
      const int r = min(first + i * kRowStep, args.n - 1 - column);
      w_offsets_[i] = r * static_cast<int>(args.ldw) + chunk * kCopyElements;
    }
  }

  // Copies columns [k, k + kStep) into a stage: the tile of x, then that of w.
  QF_DEVICE void load(int k, Shared<T> stage) const {
    const Shared<T> x_tile = stage + destination_, w_tile = x_tile + Tile::kRows * Tile::kStep;
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) copy(x_tile + i * kRowStep * Tile::kStep, x_, x_offsets_[i], k);
#pragma unroll
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
#pragma unroll
      for (int i = 0; i < kWCopies; ++i) {
        const int row = (matrix * kWCopies + i) * kRowStep;
        copy(w_tile + row * Tile::kStep, w_[matrix], w_offsets_[i], k);
      }
    }
  }

 private:
  static constexpr int kRowStep = Tile::kThreads / Tile::kChunks;
  static constexpr int kXCopies = Tile::kRows / kRowStep;
  static constexpr int kMatrices = kGated ? 2 : 1;
  static constexpr int kWCopies = Tile::kWeights / kMatrices / kRowStep;  // per matrix
  // Then the swizzle is the same for all rows of a thread.
  static_assert(kRowStep % 16 == 0, "rows of a thread keep their place in the swizzle");

  QF_DEVICE void copy(Shared<T> to, Global<const T> from, int offset, int k) const {
    if constexpr (kAligned) {
      cp_async16(to, from + (offset + k), k < limit_);
    } else {
      Vec<T, kCopyElements> values;
#pragma unroll
      for (int e = 0; e < kCopyElements; ++e) values[e] = k + e < limit_ ? from.load(offset + k + e) : T{0};
      to.template store_vec<kCopyElements>(0, values);
    }
  }

  Global<const T> x_, w_[kMatrices];
  int x_offsets_[kXCopies], w_offsets_[kWCopies];
  int limit_;  // the thread's chunk of columns [k, k + kStep) exists where k < limit_
  int destination_;
};

}  // namespace qformer::cuda
