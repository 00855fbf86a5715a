// Products of f32 activations: every output is one chain of FMAs along k, ascending; 16-bit weights are widened
// exactly.
//
// A block of 128 threads makes a tile of sums from tiles of x and w that lie transposed ([k][row]) in shared memory;
// the next ones wait in registers while these are multiplied. Any stride and alignment. Many rows take 64 × 64 sums, 8
// × 4 a thread, in steps of 16 columns of k; up to 16 rows take 8 × 32, so that 4096 weight rows give 128 blocks with 8
// KB of loads in flight each.
//
// Of a thread's columns in a gated tile the first half are of the gate and the second half of the up matrix.
#include "activation.cuh"
#include "gemm_f32.h"
#include "prims/shared.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kFewRows = 16;

// A tile of kRows rows of a matrix and kStep columns of k, brought to shared memory by all threads: kSharers of them
// take the columns of a row in turn.
template <int kRows, int kStep>
struct Panel {
  static constexpr int kLoads = kRows * kStep / kThreads;  // elements per thread
  static constexpr int kSharers = kStep / kLoads;
  // Of a transposed row, so that a warp's stores fall on all banks.
  static constexpr int kPitch = (kRows + 31) / 32 * 32 + 32 / kSharers;
  static constexpr int kElements = kStep * kPitch;
};

template <int kTileRows, int kTileWeights, int kStepColumns, int kRowsOfThread, int kColumnsOfThread>
struct TileF32 {
  static constexpr int kRows = kTileRows;        // of x
  static constexpr int kWeights = kTileWeights;  // rows of w
  static constexpr int kStep = kStepColumns;     // columns of k
  static constexpr int kThreadRows = kRowsOfThread;
  static constexpr int kThreadColumns = kColumnsOfThread;
  static constexpr int kThreadsAcross = kWeights / kThreadColumns;
  static_assert(kRows / kThreadRows * kThreadsAcross == kThreads, "every thread has its sums");
  using X = Panel<kRows, kStep>;
  using W = Panel<kWeights, kStep>;
};
using ManyRows = TileF32<64, 64, 16, 8, 4>;
using FewRows = TileF32<8, 32, 64, 1, 2>;

template <class Tile, class W, bool kGated>
class TilesF32 {
 public:
  QF_DEVICE TilesF32(const GemmArgs& args, int row, int column) : args_(args) {
    constexpr int kHalf = Tile::kThreadColumns / 2;
    const int thread = static_cast<int>(threadIdx.x), w_row = thread / WPanel::kSharers;
    x_ = Global<const float>(static_cast<const float*>(args.x)) +
         min(row + thread / XPanel::kSharers, args.m - 1) * args.ldx;
    const bool up = kGated && w_row % Tile::kThreadColumns >= kHalf;
    const int wanted = kGated ? w_row / Tile::kThreadColumns * kHalf + w_row % kHalf : w_row;
    w_ = Global<const W>(static_cast<const W*>(up ? args.w_up : args.w)) + min(column + wanted, args.n - 1) * args.ldw;
  }

  QF_DEVICE void fetch(int k) {
#pragma unroll
    for (int i = 0; i < XPanel::kLoads; ++i) {
      const int column = k + column_of<XPanel>(i);
      const float x = column < args_.k ? x_.load(column) : 0.0f;
      x_values_[i] = args_.round_x_to_bf16 != 0 ? to_float(from_float<BFloat16>(x)) : x;
    }
#pragma unroll
    for (int i = 0; i < WPanel::kLoads; ++i) {
      const int column = k + column_of<WPanel>(i);
      w_values_[i] = column < args_.k ? to_float(w_.load(column)) : 0.0f;
    }
  }

  QF_DEVICE void put(Shared<float> x_tile, Shared<float> w_tile) const {
    put_panel<XPanel>(x_tile, x_values_);
    put_panel<WPanel>(w_tile, w_values_);
  }

 private:
  using XPanel = typename Tile::X;
  using WPanel = typename Tile::W;

  template <class P>
  QF_DEVICE static int column_of(int i) {
    return i * P::kSharers + static_cast<int>(threadIdx.x) % P::kSharers;
  }
  template <class P>
  QF_DEVICE static void put_panel(Shared<float> tile, const float (&values)[P::kLoads]) {
    const int row = static_cast<int>(threadIdx.x) / P::kSharers;
#pragma unroll
    for (int i = 0; i < P::kLoads; ++i) tile.store(column_of<P>(i) * P::kPitch + row, values[i]);
  }

  const GemmArgs& args_;
  Global<const float> x_;
  Global<const W> w_;
  float x_values_[XPanel::kLoads], w_values_[WPanel::kLoads];
};

template <int kCount>
QF_DEVICE void read_row(Shared<float> tile, int at, float (&values)[kCount]) {
  constexpr int kVector = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int part = 0; part < kCount / kVector; ++part) {
    const Vec<float, kVector> v = tile.template load_vec<kVector>(at + part * kVector);
#pragma unroll
    for (int e = 0; e < kVector; ++e) values[part * kVector + e] = v[e];
  }
}

template <bool kGated, int kCount>
QF_DEVICE void write_row(const GemmArgs& args, int row, int column, float (&sums)[kCount]) {
  if (row >= args.m) return;
  const Global<float> y(static_cast<float*>(args.y));
  const Global<const float> bias(args.bias), residual(static_cast<const float*>(args.residual));
  int64_t y_row = row, residual_row = row;
  if (args.row_period > 0) {
    y_row += row / args.row_period + 1;
    residual_row = row % args.row_period + 1;
  }
  if constexpr (kGated) {
    constexpr int kHalf = kCount / 2;
    float gate[kHalf];
    for (int j = 0; j < kHalf; ++j) gate[j] = sums[j];
    activate(gate, args.activation);
    for (int j = 0; j < kHalf; ++j)
      if (column + j < args.n) y.store(y_row * args.ldy + column + j, gate[j] * sums[kHalf + j]);
  } else {
    for (int j = 0; j < kCount; ++j)
      if (bias && column + j < args.n) sums[j] += bias.load(column + j);
    activate(sums, args.activation);
    for (int j = 0; j < kCount; ++j) {
      if (column + j >= args.n) continue;
      if (residual) sums[j] += residual.load(residual_row * args.ldr + column + j);
      y.store(y_row * args.ldy + column + j, sums[j]);
    }
  }
}

template <class Tile, class W, bool kGated>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 4) gemm_f32_kernel(GemmArgs args) {
  using XPanel = typename Tile::X;
  using WPanel = typename Tile::W;
  SharedMemory shared;
  const Shared<float> x_tile = shared.take<float>(XPanel::kElements);
  const Shared<float> w_tile = shared.take<float>(WPanel::kElements);
  constexpr int kColumns = kGated ? Tile::kWeights / 2 : Tile::kWeights;
  const int row = static_cast<int>(blockIdx.x) % args.tiles_m * Tile::kRows;
  const int column = static_cast<int>(blockIdx.x) / args.tiles_m * kColumns;
  const int thread_row = static_cast<int>(threadIdx.x) / Tile::kThreadsAcross * Tile::kThreadRows;
  const int thread_column = static_cast<int>(threadIdx.x) % Tile::kThreadsAcross * Tile::kThreadColumns;

  TilesF32<Tile, W, kGated> tiles(args, row, column);
  float sums[Tile::kThreadRows][Tile::kThreadColumns] = {};
  tiles.fetch(0);
  for (int k = 0; k < args.k; k += Tile::kStep) {
    tiles.put(x_tile, w_tile);
    __syncthreads();
    if (k + Tile::kStep < args.k) tiles.fetch(k + Tile::kStep);
#pragma unroll 16
    for (int step = 0; step < Tile::kStep; ++step) {
      float x[Tile::kThreadRows], w[Tile::kThreadColumns];
      read_row(x_tile, step * XPanel::kPitch + thread_row, x);
      read_row(w_tile, step * WPanel::kPitch + thread_column, w);
#pragma unroll
      for (int i = 0; i < Tile::kThreadRows; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kThreadColumns; ++j) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
    }
    __syncthreads();
  }
  const int first = column + (kGated ? thread_column / 2 : thread_column);
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) write_row<kGated>(args, row + thread_row + i, first, sums[i]);
}

template <class Tile, class W>
QfStatus launch_tile(DeviceContext& context, const char* name, GemmArgs args) {
  const bool gated = args.w_up != nullptr;
  const int columns = gated ? Tile::kWeights / 2 : Tile::kWeights;
  args.tiles_m = (args.m + Tile::kRows - 1) / Tile::kRows;
  args.tiles_n = (args.n + columns - 1) / columns;
  const dim3 grid(static_cast<unsigned>(args.tiles_m) * static_cast<unsigned>(args.tiles_n));
  const size_t bytes = shared_bytes<float>(Tile::X::kElements) + shared_bytes<float>(Tile::W::kElements);
  const auto kernel = gated ? gemm_f32_kernel<Tile, W, true> : gemm_f32_kernel<Tile, W, false>;
  return launch(name, context.stream, kernel, grid, dim3(kThreads), bytes, args);
}

template <class W>
QfStatus launch_w(DeviceContext& context, const char* name, const GemmArgs& args) {
  return args.m <= kFewRows ? launch_tile<FewRows, W>(context, name, args)
                            : launch_tile<ManyRows, W>(context, name, args);
}

}  // namespace

QfStatus launch_gemm_f32(DeviceContext& context, const char* name, const GemmArgs& args, int32_t w_dtype) {
  if (w_dtype == QF_F32) return launch_w<float>(context, name, args);
  return w_dtype == QF_F16 ? launch_w<Half>(context, name, args) : launch_w<BFloat16>(context, name, args);
}

}  // namespace qformer::cuda
