// GEMM of f32 activations: every output is one chain of FMAs along k, ascending; 16-bit weights are widened exactly.
//
// A block of 128 threads makes 64 × 64 sums, 8 × 4 a thread, from tiles of 16 columns of k that lie transposed
// ([k][row]) in shared memory; the next tiles wait in registers while this one is multiplied. Any stride and alignment.
//
// A gated tile holds 32 gate and 32 up rows, dealt out so that a thread's columns are (gate, gate, up, up).
#include "activation.cuh"
#include "gemm_f32.h"
#include "prims/shared.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kTile = 64;  // rows of x and of w
constexpr int kStep = 16;  // columns of k
constexpr int kThreads = 128;
constexpr int kThreadRows = 8;
constexpr int kThreadColumns = 4;
constexpr int kPitch = kTile + 4;                 // of a transposed row, so that stores along k spread over the banks
constexpr int kLoads = kTile * kStep / kThreads;  // elements of a tile per thread

template <class W, bool kGated>
class TilesF32 {
 public:
  QF_DEVICE TilesF32(const GemmArgs& args, int row, int column) : args_(args) {
    const int thread = static_cast<int>(threadIdx.x);
    // Two threads share a row of both tiles and take half a step each.
    row_ = thread / 2;
    k_ = thread % 2 * kLoads;
    x_ = Global<const float>(static_cast<const float*>(args.x)) + min(row + row_, args.m - 1) * args.ldx;
    const bool up = kGated && row_ % kThreadColumns >= kThreadColumns / 2;
    const int wanted = kGated ? row_ / kThreadColumns * 2 + row_ % 2 : row_;
    w_ = Global<const W>(static_cast<const W*>(up ? args.w_up : args.w)) + min(column + wanted, args.n - 1) * args.ldw;
  }

  QF_DEVICE void fetch(int k) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const bool valid = k + k_ + i < args_.k;
      x_values_[i] = valid ? x_.load(k + k_ + i) : 0.0f;
      w_values_[i] = valid ? to_float(w_.load(k + k_ + i)) : 0.0f;
    }
    if (args_.round_x_to_bf16 != 0) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) x_values_[i] = to_float(from_float<BFloat16>(x_values_[i]));
    }
  }

  QF_DEVICE void put(Shared<float> x_tile, Shared<float> w_tile) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      x_tile.store((k_ + i) * kPitch + row_, x_values_[i]);
      w_tile.store((k_ + i) * kPitch + row_, w_values_[i]);
    }
  }

 private:
  const GemmArgs& args_;
  Global<const float> x_;
  Global<const W> w_;
  float x_values_[kLoads], w_values_[kLoads];
  int row_, k_;
};

template <bool kGated>
QF_DEVICE void write_row(const GemmArgs& args, int row, int column, float (&sums)[kThreadColumns]) {
  if (row >= args.m) return;
  const Global<float> y(static_cast<float*>(args.y));
  const Global<const float> bias(args.bias), residual(static_cast<const float*>(args.residual));
  int64_t y_row = row, residual_row = row;
  if (args.row_period > 0) {
    y_row += row / args.row_period + 1;
    residual_row = row % args.row_period + 1;
  }
  if constexpr (kGated) {
    float gate[2] = {sums[0], sums[1]};
    activate(gate, args.activation);
    for (int j = 0; j < 2; ++j)
      if (column + j < args.n) y.store(y_row * args.ldy + column + j, gate[j] * sums[2 + j]);
  } else {
    for (int j = 0; j < kThreadColumns; ++j)
      if (bias && column + j < args.n) sums[j] += bias.load(column + j);
    activate(sums, args.activation);
    for (int j = 0; j < kThreadColumns; ++j) {
      if (column + j >= args.n) continue;
      if (residual) sums[j] += residual.load(residual_row * args.ldr + column + j);
      y.store(y_row * args.ldy + column + j, sums[j]);
    }
  }
}

template <class W, bool kGated>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 4) gemm_f32_kernel(GemmArgs args) {
  SharedMemory shared;
  const Shared<float> x_tile = shared.take<float>(kStep * kPitch);
  const Shared<float> w_tile = shared.take<float>(kStep * kPitch);
  constexpr int kColumns = kGated ? kTile / 2 : kTile;
  const int row = static_cast<int>(blockIdx.x) % args.tiles_m * kTile;
  const int column = static_cast<int>(blockIdx.x) / args.tiles_m * kColumns;
  const int thread_row = static_cast<int>(threadIdx.x) / 16 * kThreadRows;
  const int thread_column = static_cast<int>(threadIdx.x) % 16 * kThreadColumns;

  TilesF32<W, kGated> tiles(args, row, column);
  float sums[kThreadRows][kThreadColumns] = {};
  tiles.fetch(0);
  for (int k = 0; k < args.k; k += kStep) {
    tiles.put(x_tile, w_tile);
    __syncthreads();
    if (k + kStep < args.k) tiles.fetch(k + kStep);
#pragma unroll
    for (int step = 0; step < kStep; ++step) {
      const Vec<float, 4> low = x_tile.load_vec<4>(step * kPitch + thread_row);
      const Vec<float, 4> high = x_tile.load_vec<4>(step * kPitch + thread_row + 4);
      const Vec<float, 4> w = w_tile.load_vec<4>(step * kPitch + thread_column);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
        for (int j = 0; j < kThreadColumns; ++j) sums[i][j] = fmaf(i < 4 ? low[i % 4] : high[i % 4], w[j], sums[i][j]);
    }
    __syncthreads();
  }
  const int first = column + (kGated ? thread_column / 2 : thread_column);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) write_row<kGated>(args, row + thread_row + i, first, sums[i]);
}

template <class W>
QfStatus launch_w(DeviceContext& context, const char* name, const GemmArgs& args) {
  const dim3 grid(static_cast<unsigned>(args.tiles_m) * static_cast<unsigned>(args.tiles_n));
  const size_t bytes = 2 * shared_bytes<float>(kStep * kPitch);
  const auto kernel = args.w_up != nullptr ? gemm_f32_kernel<W, true> : gemm_f32_kernel<W, false>;
  return launch(name, context.stream, kernel, grid, dim3(kThreads), bytes, args);
}

}  // namespace

QfStatus launch_gemm_f32(DeviceContext& context, const char* name, GemmArgs args, int32_t w_dtype) {
  const int columns = args.w_up != nullptr ? kTile / 2 : kTile;
  args.tiles_m = (args.m + kTile - 1) / kTile;
  args.tiles_n = (args.n + columns - 1) / columns;
  if (w_dtype == QF_F32) return launch_w<float>(context, name, args);
  return w_dtype == QF_F16 ? launch_w<Half>(context, name, args) : launch_w<BFloat16>(context, name, args);
}

}  // namespace qformer::cuda
