// Linear layers of many rows by outer products (linear_outer.h).
//
// x is packed once per block of rows. Threads share out panels of columns; each packs a panel of w, multiplies the
// block with it and finishes y a tile at a time, while the rows of w behind the panel are fetched. An element's bits
// are those of the other ways.
//
// Measured on one core of an Emerald Rapids Xeon against the products of linear_packed.h in alternating runs, f32:
// m = 257 k = 1408 1.1 times, m = 257 k = 4096 1.2 times, m = 1028 k = 1408 1.1 times, m = 96 the same; with AVX2 1.0
// to 1.4 times. Below, turning w costs more than it saves.

#include <algorithm>

#include "kernels.h"
#include "linear.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

// Rows that share a packing of w: packing w again costs more than x out of L3. Four pictures of 257 patches are one.
constexpr int64_t kBlockRows = 1040;
constexpr int64_t kBlockBytes = 32 << 20;  // of packed x, but for kFewestRows
constexpr int64_t kFewestRows = 256;
constexpr int64_t kTaskPanels = 4;
constexpr int64_t kReadPast = 256;  // floats: kernels read whole tiles where the last one has fewer rows

float* floats(Scratch slot, int64_t count) {
  return static_cast<float*>(thread_scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

const QuantPackKernels& quant_packing(const LinearCall& call) {
  return call.bits == 8 ? kernels().quant.outer->int8 : kernels().quant.outer->int4;
}

// A block of packed rows of x.
struct Block {
  const float* data;
  int64_t row, rows, steps;
};

Block pack_block(const LinearCall& call, const DotKernels& dot, Operand x, int64_t row, int64_t rows) {
  const QuantKernels& quant = kernels().quant;
  const bool is_quant = call.bits != 0;
  const int64_t steps = ceil_div(call.k, is_quant ? quant.block_columns : dot.step);
  const int64_t units = is_quant ? steps * quant.outer->x_units : steps, lane_stride = rows * units;
  float* packed = floats(Scratch::kPackedX, kernels().lanes * lane_stride + kReadPast);
  const int64_t tiles = ceil_div(rows, is_quant ? quant.outer->rows : kernels().linear.outer_rows);
  const int64_t short_rows = rows / tiles, tall = rows % tiles;
  const double cost = 0.4 * static_cast<double>(short_rows * call.k);
  parallel_for(tiles, grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t first = tile * short_rows + std::min(tile, tall), count = short_rows + (tile < tall);
      float* out = packed + first * units;
      if (is_quant) {
        quant_packing(call).x(call.x + (row + first) * call.ldx, call.ldx, count, call.k, out, lane_stride);
      } else {
        const void* from = offset(x.data, (row + first) * x.ld, dot.x_size);
        dot.outer_pack_x(from, x.ld, count, call.k, out, lane_stride);
      }
    }
  });
  return {packed, row, rows, steps};
}

// The block times the panel that begins at row `column` of w: raw sums where `sums` is given, else finished.
void multiply_panel(const LinearCall& call, const DotKernels& dot, const Block& x, const void* w, int64_t column,
                    float* sums, const Finish& finish) {
  const int64_t width = kernels().linear.outer_columns;
  // An odd number of rows apart: lanes a power of two apart would push each other out of the cache while written.
  const int64_t units = call.bits != 0 ? x.steps * kernels().quant.outer->w_units : x.steps;
  const int64_t lane_stride = (units | 1) * width;
  float* packed = floats(Scratch::kPackedW, kernels().lanes * lane_stride);
  float* waiting = floats(Scratch::kAccumulators, kernels().lanes * x.rows * width);
  Ahead ahead{};
  ahead.rows = std::min(width, call.n - column - width);
  if (call.bits != 0) {
    quant_packing(call).w(quant_rows(call, column), finish.n, packed, lane_stride);
    ahead.bytes = ahead.stride = call.k * call.bits / 8;
  } else {
    dot.outer_pack_w(offset(w, column * call.ldw, dot.w_size), call.ldw, finish.n, call.k, packed, lane_stride);
    ahead.bytes = call.k * dot.w_size;
    ahead.stride = call.ldw * dot.w_size;
  }
  if (ahead.rows > 0) ahead.from = static_cast<const char*>(w) + (column + width) * ahead.stride;
  const int64_t lanes = kernels().lanes;
  const int64_t last_lanes = call.bits != 0 ? (call.k / kQuantUnit - 1) % lanes + 1 : lanes;
  const auto multiply = call.bits != 0 ? kernels().quant.outer->multiply : dot.outer;
  multiply({x.data, packed, x.rows, x.steps, last_lanes, lane_stride, waiting, sums, finish, ahead});
}

void finish_panel(const LinearCall& call, const DotKernels& dot, const Block& x, int64_t column) {
  const int64_t width = kernels().linear.outer_columns;
  Finish finish = finish_of(call, x.row, x.rows, column, std::min(width, call.n - column));
  if (call.w_up != nullptr) {
    float* up = floats(Scratch::kSums, x.rows * width);
    multiply_panel(call, dot, x, call.w_up, column, up, finish);
    finish.up = up;
    finish.ld_up = width;
  }
  multiply_panel(call, dot, x, call.w, column, nullptr, finish);
}

}  // namespace

void run_outer(const LinearCall& call, const DotKernels& dot, Operand x) {
  const int64_t width = kernels().linear.outer_columns;
  const int64_t panels = ceil_div(call.n, width);
  const int64_t grain = std::clamp<int64_t>(panels / (pool_threads() * 8), 1, kTaskPanels);
  const int64_t fitting = kBlockBytes / (call.k * static_cast<int64_t>(sizeof(float)));
  const int64_t most = std::clamp(fitting, kFewestRows, kBlockRows);
  const int64_t block = ceil_div(call.m, ceil_div(call.m, most));
  for (int64_t row = 0; row < call.m; row += block) {
    const Block packed = pack_block(call, dot, x, row, std::min(block, call.m - row));
    parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; panel++) finish_panel(call, dot, packed, panel * width);
    });
  }
}

}  // namespace qformer::cpu
