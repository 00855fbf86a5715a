// bf16 products on a matrix unit: kernels().linear.bf16_tiles over the whole of one linear call.
//
// x is rounded and packed into tiles once per call. A job multiplies 32 rows of w, a pair of tiles, with all rows of x
// over a panel of k. Up to kFewRows rows of x the panel is the whole of k and w is read where it lies: traffic is n * k
// weights, none written. The hardware alone fetches ahead: requests for 64 bytes of each row would only delay those of
// the products.
//
// Above, a panel is kPanelSteps steps, so that what is read of w stays in L1 for all rows of x: where it lies, or,
// where it would not stay there (rows a multiple of 2 KiB apart, or not at the start of a line), in a copy that the
// first pass over it leaves. Meanwhile the next panel is fetched into L2. Sums wait in L2 between panels. Where x is
// larger than kBlockBytes, all pairs of a task go through a block of k before the next. Ragged edges of n and k go
// through a copy, so nothing outside w is read. Threads share out columns of y, never k.
//
// Measured on one thread of an Emerald Rapids Xeon (the unit alone: 2330 GFLOP/s; DRAM read about 19 GB/s) while the
// other thread of its core was mostly still, GFLOP/s: m = 257: 1050 to 1130 (n = k = 1408), 910 to 940 (768), 910
// (k = 2048), 670 (6144); m = 1028: 940 to 1020 (k = 1408), 940 (768). Of the first, packing x takes 11 % and writing
// y, which its lines' way from L3 and back limits, 15 %; without either the products reach 1310. m = 32: 905 where the
// weights lie in L2 (768), 560 from memory; m = 8: 335, and weights at 17 GB/s.

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
constexpr int64_t kFewTiles = 4;
constexpr int64_t kFewRows = 16 * kFewTiles;    // w is read at most twice, the second time from L2
constexpr int64_t kPanelSteps = 16;             // 32 KiB of w: two thirds of L1
constexpr int64_t kBlockBytes = 5 * (1 << 18);  // of x, of an L2 of 2 MiB
constexpr int64_t kBlockRows = 272;
constexpr int64_t kTaskPairs = 8;

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
  int64_t steps, panel_steps, block_steps;

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
  PackedTiles x{nullptr, row, rows, ceil_div(rows, columns), columns, ceil_div(call.k, kStep), panel_steps, 0};
  const int64_t panels = ceil_div(x.steps, panel_steps);
  const int64_t blocks = ceil_div(x.steps * x.tiles * x.step_bytes(), kBlockBytes);
  x.block_steps = ceil_div(panels, std::min(blocks, panels)) * panel_steps;
  auto* packed =
      static_cast<char*>(thread_scratch(Scratch::kPackedX, static_cast<size_t>(x.steps * x.tiles * x.step_bytes())));
  x.data = packed;
  const double cost = 2.0 * static_cast<double>(panel_steps * columns);
  parallel_for(panels * x.tiles, grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % panels * panel_steps, tile = item / panels, steps = x.steps_from(first);
      const float* from = call.x + (row + tile * columns) * call.ldx + first * kStep;
      tiles.pack_x(from, call.ldx, std::min<int64_t>(columns, rows - tile * columns), call.k - first * kStep, columns,
                   steps, packed + (first * x.tiles + tile * steps) * x.step_bytes());
    }
  });
  return x;
}

// The products of a block of rows of x with n neighbouring rows of w, from row `column` on.
class Task {
 public:
  Task(const LinearCall& call, const TileKernels& tiles, const PackedTiles& x, int64_t column, int64_t n)
      : call_(call), tiles_(tiles), x_(x), column_(column), n_(n), pairs_(ceil_div(n, kPair)) {}

  void run() {
    const int64_t floats = (keeps_sums() ? pairs_ : 1) * x_.tiles * kPairFloats;
    const bool gated = call_.w_up != nullptr;
    sums_ = static_cast<float*>(
        thread_scratch(Scratch::kAccumulators, static_cast<size_t>((gated ? 2 : 1) * floats) * sizeof(float)));
    up_ = gated ? sums_ + floats : nullptr;
    for (int64_t first = 0; first < x_.steps; first += x_.block_steps) {
      for (int64_t pair = 0; pair < pairs_; pair++) multiply_pair(pair, first);
    }
    tiles_.finish_waiting(waiting_);
  }

 private:
  // One pair over a block of k.
  struct Run {
    int64_t pair, first, end;  // steps
    Finish finish;             // where the block is the last
    const char* next;          // weights to fetch: the next run's
  };

  // Whether sums wait while other pairs go through the same block of k.
  bool keeps_sums() const { return x_.block_steps < x_.steps; }
  int64_t place(int64_t pair) const { return keeps_sums() ? pair * x_.tiles * kPairFloats : 0; }
  int64_t row_bytes() const { return call_.ldw * 2; }
  int64_t rows(int64_t pair) const { return std::min(kPair, n_ - pair * kPair); }
  const char* at(const void* w, int64_t pair, int64_t step) const {
    return static_cast<const char*>(w) + (column_ + pair * kPair) * row_bytes() + step * kStepBytes;
  }

  void multiply_pair(int64_t pair, int64_t first) {
    const int64_t end = std::min(first + x_.block_steps, x_.steps);
    const void* w = up_ != nullptr ? call_.w_up : call_.w;
    const bool wraps = pair + 1 == pairs_ && end < x_.steps;
    Run run{pair, first, end, finish_of(call_, x_.row, x_.rows, column_ + pair * kPair, rows(pair)), nullptr};
    if (up_ != nullptr) {
      run.next = at(call_.w, pair, first);
      multiply_panels(run, w, up_, false);
    }
    run.next = wraps ? at(w, 0, end) : at(w, pair + 1, pair + 1 < pairs_ ? first : 0);
    multiply_panels(run, call_.w, sums_, end == x_.steps);
  }

  void multiply_panels(const Run& run, const void* w, float* sums, bool finishes) {
    int64_t steps;
    for (int64_t first = run.first; first < run.end; first += steps) {
      const int64_t panel = first / x_.panel_steps * x_.panel_steps;
      steps = panel + x_.steps_from(panel) - first;
      // Read where it lies, w has its tail of k as a panel of its own.
      const int64_t whole = call_.k / kStep - first;
      if (x_.tiles <= kFewTiles && whole > 0) steps = std::min(steps, whole);
      const bool last = first + steps == run.end;
      TileJob job{};
      job.x = x_.panel(panel) + (first - panel) * x_.step_bytes();
      job.x_tiles = x_.tiles;
      job.x_stride = x_.steps_from(panel) * x_.step_bytes();
      job.columns = x_.columns;
      job.steps = steps;
      job.fresh = first == 0;
      job.sums = sums + place(run.pair);
      job.finish = last && finishes ? &run.finish : nullptr;
      job.up = up_ != nullptr ? up_ + place(run.pair) : nullptr;
      job.waiting = &waiting_;
      job.ahead = last ? run.next : at(w, run.pair, first + steps);
      job.ahead_stride = row_bytes();
      job.ahead_rows = x_.tiles > kFewTiles ? ceil_div(kPair, x_.tiles / 2) : 0;
      place_w(job, w, run.pair, first);
      tiles_.multiply(job);
    }
  }

  // Has the job read w where it lies, or a copy: of ragged edges, and of what would not stay in L1.
  void place_w(TileJob& job, const void* w, int64_t pair, int64_t first) {
    job.w = at(w, pair, first);
    job.w_stride = row_bytes();
    job.w_tile = kPair / 2 * job.w_stride;
    job.w_step = kStepBytes;
    const bool whole = rows(pair) == kPair && (first + job.steps) * kStep <= call_.k;
    if (whole && (x_.tiles <= kFewTiles || stays_in_l1(w))) return;
    void* copy = thread_scratch(Scratch::kPackedW, static_cast<size_t>(x_.panel_steps * kPair * kStepBytes));
    if (whole) {
      job.copy = copy;
      return;
    }
    tiles_.copy_w(job.w, call_.ldw, rows(pair), std::min(job.steps * kStep, call_.k - first * kStep), copy);
    job.w = copy;
    job.w_stride = kStepBytes;
    job.w_tile = kPair / 2 * kStepBytes;
    job.w_step = kPair * kStepBytes;
  }

  // Whether a panel of 32 rows does, where it lies: neither across lines nor in too few sets.
  bool stays_in_l1(const void* w) const {
    return reinterpret_cast<uintptr_t>(w) % 64 == 0 && row_bytes() % 64 == 0 && row_bytes() % 2048 != 0;
  }

  const LinearCall& call_;
  const TileKernels& tiles_;
  const PackedTiles& x_;
  int64_t column_, n_, pairs_;
  float* sums_ = nullptr;  // between panels: [pair][tile of rows][2][16][16]
  float* up_ = nullptr;    // the same of w_up
  WaitingTiles waiting_{};
};

void run_few(const LinearCall& call, const TileKernels& tiles) {
  const PackedTiles x = pack_rows(call, tiles, 0, call.m, ceil_div(call.k, kStep));
  const double bytes = static_cast<double>(kPair * call.k * 2) * (call.w_up != nullptr ? 2 : 1);
  parallel_for(ceil_div(call.n, kPair), grain_for(bytes / 15), [&](int64_t begin, int64_t end) {
    const TileSession session(tiles, x.columns);
    Task(call, tiles, x, begin * kPair, std::min(call.n, end * kPair) - begin * kPair).run();
  });
}

void run_many(const LinearCall& call, const TileKernels& tiles) {
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
        Task(call, tiles, x, column, n).run();
      }
    });
  }
}

}  // namespace

void run_tiles(const LinearCall& call) {
  const TileKernels& tiles = *kernels().linear.bf16_tiles;
  if (call.m <= kFewRows) {
    run_few(call, tiles);
  } else {
    run_many(call, tiles);
  }
}

}  // namespace qformer::cpu
