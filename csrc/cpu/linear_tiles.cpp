// bf16 products on a matrix unit: kernels().linear.bf16_tiles over the whole of one linear call.
//
// x is rounded and packed into tiles once per call. Up to kStreamRows rows of x, tiles of w are read straight from the
// matrix while the lines some steps ahead are fetched into L2: traffic is n * k weights, none written. Above, 32 rows
// by up to kPanelSteps steps of w are copied into L1 and used for all rows of x, because rows a multiple of 4 KiB apart
// would push each other out of L1 between two uses; the sums of a task wait in L2 between panels of k. Ragged edges of
// n and k go through the copy as well, so nothing outside w is read. Threads share out columns of y, never k.
//
// Measured on one core of an Emerald Rapids Xeon (unit alone: 2340 GFLOP/s; DRAM read about 19 GB/s). m = 1 to 32:
// weights at 15 to 18 GB/s. m = 257: 680 to 790 GFLOP/s, a third of the peak. The inner loop alone reaches 62 % with x
// in L2, 50 % where x is larger than L2, 43 % with the copies of w; the epilogue in f32 takes 8 to 23 % of the time.

#include <algorithm>

#include "kernels.h"
#include "linear.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kStep = 32;  // columns of k per tile
constexpr int64_t kPair = 32;  // rows of w per job
constexpr int64_t kStepBytes = kStep * 2;
constexpr int64_t kPairFloats = 512;  // two tiles of sums
constexpr int64_t kStreamRows = 64;   // past two tiles of x, w is read again, from L2
constexpr int64_t kPanelSteps = 8;    // 16 KiB of w: as much of x and of sums fits beside it
constexpr int64_t kBlockRows = 544;
constexpr int64_t kTaskPairs = 8;    // of the packed path
constexpr int64_t kStreamPairs = 8;  // whose sums wait for their epilogue
constexpr int64_t kAheadSteps = 8;

// The tile registers of this thread, for as long as it lives.
class TileSession {
 public:
  TileSession(const TileKernels& tiles, int32_t columns) : tiles_(tiles) { tiles_.configure(columns); }
  ~TileSession() { tiles_.release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

 private:
  const TileKernels& tiles_;
};

// A block of packed rows of x: [panel of k][tile of rows][step of the panel][tile].
struct PackedTiles {
  const char* data;
  int64_t row, rows, tiles;
  int32_t columns;  // rows per tile
  int64_t steps, panel_steps;

  int64_t step_bytes() const { return 64 * columns; }
  int64_t steps_from(int64_t first) const { return std::min(panel_steps, steps - first); }
  const char* panel(int64_t first) const { return data + first * tiles * step_bytes(); }
};

int32_t tile_columns(int64_t m) {
  int32_t columns = 1;
  while (columns < 16 && columns < m) columns *= 2;
  return columns;
}

PackedTiles pack_rows(const LinearCall& call, const TileKernels& tiles, int64_t row, int64_t rows,
                      int64_t panel_steps) {
  const int32_t columns = tile_columns(call.m);
  PackedTiles x{nullptr, row, rows, ceil_div(rows, columns), columns, ceil_div(call.k, kStep), panel_steps};
  auto* packed =
      static_cast<char*>(thread_scratch(Scratch::kPackedX, static_cast<size_t>(x.steps * x.tiles * x.step_bytes())));
  x.data = packed;
  const int64_t panels = ceil_div(x.steps, panel_steps);
  const double cost = 2.0 * static_cast<double>(panel_steps * columns);
  parallel_for(panels * x.tiles, grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item / x.tiles * panel_steps, tile = item % x.tiles, steps = x.steps_from(first);
      const float* from = call.x + (row + tile * columns) * call.ldx + first * kStep;
      tiles.pack_x(from, call.ldx, std::min<int64_t>(columns, rows - tile * columns), call.k - first * kStep, columns,
                   steps, packed + (first * x.tiles + tile * steps) * x.step_bytes());
    }
  });
  return x;
}

// One task's products with one matrix.
struct Task {
  const LinearCall& call;
  const TileKernels& tiles;
  const PackedTiles& x;
  int64_t column, n;
  int64_t spread;  // the first `spread` pairs take rows `spread` apart (1: neighbours), the others neighbours

  int64_t pairs() const { return ceil_div(n, kPair); }
  int64_t sums() const { return pairs() * x.tiles * kPairFloats; }
  int64_t row_bytes() const { return call.ldw * 2; }
  const char* row(const void* w, int64_t pair) const {
    return static_cast<const char*>(w) + (column + first_row(pair)) * row_bytes();
  }
  int64_t first_row(int64_t pair) const { return pair < spread ? pair : pair * kPair; }
  int64_t stride(int64_t pair) const { return pair < spread ? spread : 1; }
  int64_t rows(int64_t pair) const { return std::min(kPair, n - pair * kPair); }

  TileJob job(float* c, int64_t pair, int64_t panel, int64_t first, int64_t steps) const {
    TileJob job{};
    job.x = x.panel(panel) + (first - panel) * x.step_bytes();
    job.x_tiles = x.tiles;
    job.x_stride = x.steps_from(panel) * x.step_bytes();
    job.columns = x.columns;
    job.steps = steps;
    job.fresh = first == 0;
    job.c = c + pair * x.tiles * kPairFloats;
    return job;
  }

  // Steps [first, first + steps) of one pair, through a copy of w in L1. `next` is fetched meanwhile.
  void multiply_copy(const void* w, int64_t pair, int64_t panel, int64_t first, int64_t steps, const char* next,
                     float* c) const {
    void* copy = thread_scratch(Scratch::kPackedW, static_cast<size_t>(kPanelSteps * kPair * kStepBytes));
    tiles.copy_w(row(w, pair) + first * kStepBytes, call.ldw * stride(pair), rows(pair),
                 std::min(steps * kStep, call.k - first * kStep), copy);
    TileJob job = this->job(c, pair, panel, first, steps);
    job.w = copy;
    job.w_stride = kStepBytes;
    job.w_tile = kPair / 2 * kStepBytes;
    job.w_step = kPair * kStepBytes;
    if (next != nullptr) {
      job.ahead = next;
      job.ahead_stride = row_bytes();
      job.ahead_rows = ceil_div(kPair, ceil_div(x.tiles, 2));
      job.ahead_steps = steps;
    }
    tiles.multiply(job);
  }

  // Panel by panel, each for all pairs, so that a panel of x is read from L2 by all pairs but the first.
  void multiply_packed(const void* w, float* c) const {
    for (int64_t first = 0; first < x.steps; first += x.panel_steps) {
      for (int64_t pair = 0; pair < pairs(); pair++) {
        const bool last = pair + 1 == pairs();
        const char* next =
            last ? row(w, 0) + (first + x.panel_steps) * kStepBytes : row(w, pair + 1) + first * kStepBytes;
        multiply_copy(w, pair, first, first, x.steps_from(first), next, c);
      }
    }
  }

  // Straight from w, the whole of k at once. The rows of a job lie n / 32 apart, so that the weights are read as 32
  // streams, each running through its rows without a break.
  void multiply_streamed(const void* w, float* c) const {
    const int64_t direct = call.k / kStep;
    for (int64_t pair = 0; pair < spread && direct > 0; pair++) {
      TileJob job = this->job(c, pair, 0, 0, direct);
      const char* start = row(w, pair);
      job.w = start;
      job.w_stride = job.ahead_stride = spread * row_bytes();
      job.w_tile = kPair / 2 * job.w_stride;
      job.w_step = kStepBytes;
      job.ahead_rows = kPair;
      job.ahead_steps = std::max<int64_t>(direct - kAheadSteps, 0);
      job.ahead = start + kAheadSteps * kStepBytes;
      const int64_t next = pair + 1 < spread ? 1 : spread * (kPair - 1) + 1;
      job.then = start + next * row_bytes() + (kAheadSteps - direct) * kStepBytes;
      tiles.multiply(job);
    }
    for (int64_t pair = 0; pair < pairs(); pair++) {
      const int64_t done = pair < spread ? direct : 0;
      for (int64_t first = done; first < x.steps; first += kPanelSteps) {
        multiply_copy(w, pair, 0, first, std::min(kPanelSteps, x.steps - first), nullptr, c);
      }
    }
  }

  // Turns the sums a tile of rows at a time and applies the epilogue.
  void finish(const float* c, const float* c_up) const {
    const int64_t ld = pairs() * kPair;
    auto* sums = static_cast<float*>(thread_scratch(Scratch::kSums, static_cast<size_t>(32 * ld) * sizeof(float)));
    float* up = c_up != nullptr ? sums + 16 * ld : nullptr;
    for (int64_t tile = 0; tile < x.tiles; tile++) {
      const int64_t first = tile * x.columns, rows = std::min<int64_t>(x.columns, x.rows - first);
      for (int64_t pair = 0; pair < pairs(); pair++) {
        const int64_t at = (pair * x.tiles + tile) * kPairFloats;
        tiles.turn(c + at, rows, sums + first_row(pair), ld, stride(pair));
        if (up != nullptr) tiles.turn(c_up + at, rows, up + first_row(pair), ld, stride(pair));
      }
      finish_block(call, sums, up, ld, x.row + first, rows, column, n);
    }
  }

  void run(bool streamed) const {
    const bool gated = call.w_up != nullptr;
    auto* c = static_cast<float*>(
        thread_scratch(Scratch::kAccumulators, static_cast<size_t>((gated ? 2 : 1) * sums()) * sizeof(float)));
    const auto fill = [&](const void* w, float* out) {
      return streamed ? multiply_streamed(w, out) : multiply_packed(w, out);
    };
    fill(call.w, c);
    if (gated) fill(call.w_up, c + sums());
    finish(c, gated ? c + sums() : nullptr);
  }
};

void run_streamed(const LinearCall& call, const TileKernels& tiles) {
  const PackedTiles x = pack_rows(call, tiles, 0, call.m, ceil_div(call.k, kStep));
  const double bytes = static_cast<double>(kPair * call.k * 2) * (call.w_up != nullptr ? 2 : 1);
  parallel_for(ceil_div(call.n, kPair), grain_for(bytes / 15), [&](int64_t begin, int64_t end) {
    const TileSession session(tiles, x.columns);
    for (int64_t pair = begin; pair < end; pair += kStreamPairs) {
      const int64_t last = std::min(call.n, end * kPair);
      const int64_t column = pair * kPair, n = std::min(kStreamPairs * kPair, last - column);
      Task{call, tiles, x, column, n, n / kPair}.run(true);
    }
  });
}

void run_packed(const LinearCall& call, const TileKernels& tiles) {
  const int64_t steps = ceil_div(call.k, kStep);
  const int64_t panel_steps = ceil_div(steps, ceil_div(steps, kPanelSteps));
  const int64_t block = ceil_div(ceil_div(call.m, ceil_div(call.m, kBlockRows)), 16) * 16;
  const int64_t pairs = ceil_div(call.n, kPair);
  const int64_t task_pairs = std::clamp<int64_t>(pairs / (pool_threads() * 2), 1, kTaskPairs);
  for (int64_t row = 0; row < call.m; row += block) {
    const PackedTiles x = pack_rows(call, tiles, row, std::min(block, call.m - row), panel_steps);
    parallel_for(ceil_div(pairs, task_pairs), 1, [&](int64_t begin, int64_t end) {
      const TileSession session(tiles, x.columns);
      for (int64_t task = begin; task < end; task++) {
        const int64_t column = task * task_pairs * kPair, n = std::min(task_pairs * kPair, call.n - column);
        Task{call, tiles, x, column, n, 1}.run(false);
      }
    });
  }
}

}  // namespace

void run_tiles(const LinearCall& call) {
  const TileKernels& tiles = *kernels().linear.bf16_tiles;
  if (call.m <= kStreamRows) {
    run_streamed(call, tiles);
  } else {
    run_packed(call, tiles);
  }
}

}  // namespace qformer::cpu
