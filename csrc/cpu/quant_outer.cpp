// Linear layers of many rows with quantised weights, by outer products (outer_products.h).
//
// x is packed once per block of rows. Threads share out panels of columns; each packs a panel of w, multiplies the
// block with it and finishes y a tile at a time, while the rows of w behind the panel are fetched. An element's bits
// are those of the streaming way.

#include <algorithm>

#include "kernels.h"
#include "linear.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kBlockBytes = 32 << 20;  // of x in f32
constexpr int64_t kFewestRows = 256;
constexpr int64_t kMostRows = 1040;
constexpr int64_t kTaskPanels = 4;
constexpr int64_t kReadPast = 256;  // floats: kernels read whole tiles where the last one has fewer rows

float* floats(Scratch slot, int64_t count) {
  return static_cast<float*>(thread_scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

const QuantOuterKernels& outer() { return *kernels().quant.outer; }
const QuantPackKernels& packing(const LinearCall& call) { return call.bits == 8 ? outer().int8 : outer().int4; }

// A block of packed rows of x.
struct Block {
  const float* data;
  int64_t row, rows, steps;
};

Block pack_block(const LinearCall& call, int64_t row, int64_t rows) {
  const int64_t steps = ceil_div(call.k, kernels().quant.block_columns), units = steps * outer().x_units;
  const int64_t lane_stride = rows * units;
  float* packed = floats(Scratch::kPackedX, kernels().lanes * lane_stride + kReadPast);
  const int64_t tiles = ceil_div(rows, outer().rows), short_rows = rows / tiles, tall = rows % tiles;
  const double cost = 0.4 * static_cast<double>(short_rows * call.k);
  parallel_for(tiles, grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t first = tile * short_rows + std::min(tile, tall), count = short_rows + (tile < tall);
      packing(call).x(call.x + (row + first) * call.ldx, call.ldx, count, call.k, packed + first * units, lane_stride);
    }
  });
  return {packed, row, rows, steps};
}

void finish_panel(const LinearCall& call, const Block& x, int64_t column) {
  const int64_t width = outer().columns, lanes = kernels().lanes;
  const Finish finish = finish_of(call, x.row, x.rows, column, std::min(width, call.n - column));
  // An odd number of rows apart: lanes a power of two apart would push each other out of the cache while written.
  const int64_t lane_stride = ((x.steps * outer().w_units) | 1) * width;
  float* packed = floats(Scratch::kPackedW, lanes * lane_stride);
  packing(call).w(quant_rows(call, column), finish.n, packed, lane_stride);
  Ahead ahead{};
  ahead.bytes = ahead.stride = call.k * call.bits / 8;
  ahead.rows = std::min(width, call.n - column - width);
  if (ahead.rows > 0) ahead.from = static_cast<const char*>(call.w) + (column + width) * ahead.stride;
  const int64_t last_lanes = (call.k / kQuantUnit - 1) % lanes + 1;
  float* waiting = floats(Scratch::kAccumulators, lanes * x.rows * width);
  outer().multiply({x.data, packed, x.rows, x.steps, last_lanes, lane_stride, waiting, finish, ahead});
}

}  // namespace

void run_quant_outer(const LinearCall& call) {
  const int64_t width = outer().columns, panels = ceil_div(call.n, width);
  const int64_t grain = std::clamp<int64_t>(panels / (pool_threads() * 8), 1, kTaskPanels);
  const int64_t fitting = kBlockBytes / (call.k * static_cast<int64_t>(sizeof(float)));
  const int64_t most = std::clamp(fitting, kFewestRows, kMostRows);
  const int64_t block = ceil_div(call.m, ceil_div(call.m, most));
  for (int64_t row = 0; row < call.m; row += block) {
    const Block packed = pack_block(call, row, std::min(block, call.m - row));
    parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; panel++) finish_panel(call, packed, panel * width);
    });
  }
}

}  // namespace qformer::cpu
