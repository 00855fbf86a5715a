// Linear layers on weights in place, [n, k] row-major f32 / f16 / bf16 or quantised (quant_layout.h).
//
// Threads share out columns of y (rows of w), never k. Each task fills a buffer of raw sums for its columns and then
// applies the epilogue (bias, activation, residual or gate) while they are in cache. Few rows of x wait, packed, while
// the weights stream by: memory traffic is n * k weights. So do many where weights are quantised, which lie as register
// tiles take them. Other weights are packed, panel by panel, into L1 on the fly for many rows: n * k weights per block
// of rows. bf16 products on a matrix unit have a way of their own (linear_tiles.cpp).

#include "linear.h"

#include <algorithm>
#include <atomic>

#include "families.h"
#include "kernels.h"
#include "norm.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kPanelsFrom = 17;
constexpr int64_t kBlockRows = 272;  // a block of k of so many packed rows has 408 KiB of an L2 of 1 MiB
constexpr int64_t kStayingFloats = (1 << 19) / sizeof(float);  // of packed x that L2 keeps
constexpr int64_t kTaskColumns = 64, kTasksPerThread = 12;
// Packed x beyond so many bytes waits further away than L3, and each task fetches all of it: fewer and wider ones are
// faster where a panel is narrow (LinearKernels::far_columns).
constexpr int64_t kFarFloats = (7 << 19) / sizeof(float), kFarTasksPerThread = 3;
constexpr int64_t kTasksTogether = 2;
// So few threads pack x each for itself: lines that both read would have to cross from core to core. On a Zen 5 EPYC
// products of bf16 then are 1.15 to 1.3 times as fast at 768 x 768, 0.98 to 1.05 times at larger sizes.
constexpr int64_t kPackingThreads = 2;
// f32 products of so many rows and up to so many columns of x and of y take x from its rows: with 257 rows on a Zen 5
// EPYC 0.99 to 1.02 times as fast as with x packed.
constexpr int64_t kManyRows = 64, kSmall = 1536;
constexpr int64_t kStreamSums = 4096;      // raw sums waiting for their epilogue: 16 KiB of L1
constexpr int64_t kStreamGrain = 64;       // columns: whole tiles of four blocks of kQuantRows
constexpr int64_t kCachedBytes = 1 << 20;  // of weights that may still lie in L2
constexpr int64_t kStreamedRows = 1040;    // of a quantised call at a time, at most: packed x stays small

// Floats of `count` elements of k of a packed row.
int64_t packed_floats(const DotKernels& dot, int64_t count) { return ceil_div(count, dot.step) * dot.step_floats; }

// task(prepare(), i, next) for all i below `tasks`, some neighbours at a time, but one by one at the end, where who has
// none left would wait. next() claims what the same thread does then, `tasks` for nothing; a task returns that and may
// ask early, to read ahead. With two threads that makes products of 1,408 columns 1.0 to 1.1 times as fast. Where there
// are few threads, each prepares for itself.
template <class Prepare, class Task>
void share(int64_t tasks, int64_t together, const Prepare& prepare, const Task& task) {
  const int64_t threads = std::min<int64_t>(pool_threads(), tasks);
  const bool own = threads <= kPackingThreads;
  const auto shared = own ? decltype(prepare()){} : prepare();
  const int64_t runs = std::max<int64_t>(tasks - 2 * threads, 0) / together, alone = runs * together;
  const int64_t turns = runs + tasks - alone;
  alignas(64) std::atomic<int64_t> next{0};  // apart from what all threads read
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    const auto claim = [&] {
      const int64_t turn = next.fetch_add(1, std::memory_order_relaxed);
      return turn < runs ? turn * together : std::min(alone + turn - runs, tasks);
    };
    if (next.load(std::memory_order_relaxed) >= turns) return;
    const auto prepared = own ? prepare() : shared;
    for (int64_t i = claim(); i < tasks;) {
      const bool goes_on = i < alone && (i + 1) % together != 0;
      i = task(prepared, i, [&] { return goes_on ? i + 1 : claim(); });
    }
  });
}

// task(prepare(), begin, end) for all items below `count`, in ranges: each is half a thread's share of what is left, so
// that what streams by does so in long pieces and threads end together all the same. `grain` items are worth a thread.
template <class Prepare, class Task>
void share_ranges(int64_t count, int64_t grain, const Prepare& prepare, const Task& task) {
  const int64_t threads = std::min<int64_t>(pool_threads(), ceil_div(count, grain));
  const bool own = threads <= kPackingThreads;
  const auto shared = own ? decltype(prepare()){} : prepare();
  alignas(64) std::atomic<int64_t> next{0};  // apart from what all threads read
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    int64_t begin = next.load(std::memory_order_relaxed);
    if (begin >= count) return;
    const auto prepared = own ? prepare() : shared;
    while (begin < count) {
      const int64_t end = threads == 1 ? count : begin + ceil_div(count - begin, 2 * threads);
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      task(prepared, begin, end);
      begin = next.load(std::memory_order_relaxed);
    }
  });
}

// A block of rows of x, packed: groups of rows that are multiplied together while weights stream by.
struct StreamedRows {
  const float* data;
  int64_t row, rows, together;
};

StreamedRows stream_rows(const LinearCall& call, const DotKernels& dot, int64_t row, int64_t rows) {
  const int64_t groups = ceil_div(rows, dot.max_rows), together = ceil_div(rows, groups);
  const int64_t row_floats = packed_floats(dot, call.k);
  auto* packed =
      static_cast<float*>(thread_scratch(Scratch::kPackedX, static_cast<size_t>(rows * row_floats) * sizeof(float)));
  const double cost = 0.3 * static_cast<double>(together * call.k);
  parallel_for(ceil_div(rows, together), grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * together; i < std::min(end * together, rows); i += together) {
      dot.pack_x(call.x + (row + i) * call.ldx, call.ldx, std::min(together, rows - i), call.k,
                 packed + i * row_floats);
    }
  });
  return {packed, row, rows, together};
}

void stream_columns(const LinearCall& call, const DotKernels& dot, const StreamedRows& x, int64_t column, int64_t n) {
  const int64_t row_floats = packed_floats(dot, call.k), size = x.rows * n;
  const bool gated = call.w_up != nullptr;
  // Sums without an epilogue are written to y at once.
  const bool plain = !gated && call.bias == nullptr && call.residual == nullptr && call.activation == QF_ACT_NONE;
  const int64_t ld_sums = plain ? call.ldy : n;
  float* sums = plain ? call.y + x.row * call.ldy + column
                      : static_cast<float*>(thread_scratch(
                            Scratch::kSums, static_cast<size_t>(gated ? 2 * size : size) * sizeof(float)));
  float* up = gated ? sums + size : nullptr;
  const uint16_t* scales = call.bits != 0 ? call.scales + column * (call.k / call.group) : nullptr;
  const bool from_memory = call.n * call.k * dot.w_bits / 8 >= kCachedBytes;
  const auto fill = [&](const void* w, float* out) {
    const void* from = static_cast<const char*>(w) + column * call.ldw * dot.w_bits / 8;
    for (int64_t i = 0; i < x.rows; i += x.together) {
      dot.rows({x.data + i * row_floats, std::min(x.together, x.rows - i), from, call.ldw, n, call.k, out + i * ld_sums,
                ld_sums, scales, call.group, from_memory});
    }
  };
  fill(call.w, sums);
  if (up != nullptr) fill(call.w_up, up);
  if (!plain) finish_block(call, sums, up, n, x.row, x.rows, column, n);
}

void run_streaming(const LinearCall& call, const DotKernels& dot) {
  const int64_t block = ceil_div(call.m, ceil_div(call.m, kStreamedRows));
  const double elements = static_cast<double>(call.k * kStreamGrain) * (call.w_up != nullptr ? 2 : 1);
  const double cost = std::max(elements * dot.w_bits / 8 / 15, elements * static_cast<double>(block) / 30);
  // Many columns at once: the weights are read as a few streams, and each should be long.
  const int64_t columns = std::max(kStreamSums / block / kStreamGrain * kStreamGrain, kStreamGrain);
  for (int64_t row = 0; row < call.m; row += block) {
    share_ranges(
        ceil_div(call.n, kStreamGrain), grain_for(cost),
        [&] { return stream_rows(call, dot, row, std::min(block, call.m - row)); },
        [&](const StreamedRows& x, int64_t first, int64_t last) {
          const int64_t end = std::min(last * kStreamGrain, call.n);
          for (int64_t column = first * kStreamGrain; column < end; column += columns) {
            stream_columns(call, dot, x, column, std::min(columns, end - column));
          }
        });
  }
}

// A block of rows of x, packed: [block of k][tile][groups of the block][rows of the tile].
struct PackedRows {
  const float* data;
  int64_t row, rows;
  int64_t ldx;  // of rows that stay as they are, else 0
};

PackedRows pack_rows(const LinearCall& call, const DotKernels& dot, int64_t row, int64_t rows) {
  const bool small = rows >= kManyRows && call.n <= kSmall && call.k <= kSmall && call.k % dot.step == 0;
  if (small && dot.takes_rows) return {call.x + row * call.ldx, row, rows, call.ldx};
  const int64_t height = kernels().linear.tile_rows, tiles = ceil_div(rows, height);
  const int64_t blocks = ceil_div(call.k, dot.block);
  auto* packed = static_cast<float*>(
      thread_scratch(Scratch::kPackedX, static_cast<size_t>(rows * packed_floats(dot, call.k)) * sizeof(float)));
  const double cost = 0.5 * static_cast<double>(std::min<int64_t>(dot.block, call.k) * height);
  parallel_for(tiles * blocks, grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item / tiles * dot.block, count = std::min<int64_t>(dot.block, call.k - first);
      const int64_t before = item % tiles * height;
      dot.pack_x(call.x + (row + before) * call.ldx + first, call.ldx, std::min(height, rows - before), count,
                 packed + rows * packed_floats(dot, first) + before * packed_floats(dot, count));
    }
  });
  return {packed, row, rows, 0};
}

// Columns [column, column + n) for a block of rows. Where L2 holds all of x, panel by panel: each row of w is read as
// one long stream. Else block of k by block of k, so that the part of x that belongs to it stays in L2 while the panels
// pass through L1.
class PanelTask {
 public:
  // next: the column that the thread goes on with.
  PanelTask(const LinearCall& call, const DotKernels& dot, const PackedRows& x, int64_t column, int64_t n, int64_t next)
      : call_(call), dot_(dot), x_(x), column_(column), n_(n), next_(next), ld_(round_up(n, width())) {}

  void run() {
    auto* sums = static_cast<float*>(thread_scratch(
        Scratch::kSums, static_cast<size_t>((call_.w_up != nullptr ? 2 : 1) * x_.rows * ld_) * sizeof(float)));
    float* up = call_.w_up != nullptr ? sums + x_.rows * ld_ : nullptr;
    const Next next_task{call_.w, next_, 0};
    fill(call_.w, sums, up != nullptr ? Next{call_.w_up, column_, 0} : next_task);
    if (up != nullptr) fill(call_.w_up, up, next_task);
    finish_block(call_, sums, up, ld_, x_.row, x_.rows, column_, n_);
  }

 private:
  static int64_t width() { return kernels().linear.panel_columns; }
  const char* at(const void* w, int64_t row, int64_t k) const {
    return static_cast<const char*>(w) + (row * call_.ldw + k) * dot_.w_bits / 8;
  }
  // Rows of w that are read after others.
  struct Next {
    const void* w;
    int64_t row, k;
  };

  // The sums of all columns; `next` is read after these.
  void fill(const void* w, float* sums, Next next) {
    const bool x_stays = x_.rows * packed_floats(dot_, call_.k) <= kStayingFloats;
    const int64_t together = x_stays ? width() : n_;
    for (int64_t from = 0; from < n_; from += together) {
      const int64_t to = std::min(from + together, n_);
      fill_columns(w, from, to, sums, to < n_ ? Next{w, column_ + to, 0} : next);
    }
  }

  void fill_columns(const void* w, int64_t from, int64_t to, float* sums, Next next) {
    const LinearKernels& table = kernels().linear;
    auto* panel =
        static_cast<float*>(thread_scratch(Scratch::kPackedW, static_cast<size_t>(table.panel_floats) * sizeof(float)));
    for (int64_t first = 0; first < call_.k; first += dot_.block) {
      const int64_t count = std::min<int64_t>(dot_.block, call_.k - first), after = first + count;
      const float* x = x_.data + (x_.ldx != 0 ? first : x_.rows * packed_floats(dot_, first));
      for (int64_t j = from; j < to; j += width()) {
        const Next fetched = j + width() < to  ? Next{w, column_ + j + width(), first}
                             : after < call_.k ? Next{w, column_ + from, after}
                                               : next;
        const int64_t size = dot_.w_bits / 8, fetched_k = std::min<int64_t>(dot_.block, call_.k - fetched.k);
        const Ahead ahead{at(fetched.w, fetched.row, fetched.k), call_.ldw * size, fetched_k * size,
                          std::clamp<int64_t>(call_.n - fetched.row, 0, width())};
        float* y = after == call_.k ? call_.y + x_.row * call_.ldy + column_ + j : nullptr;
        dot_.multiply({x, x_.ldx, at(w, column_ + j, first), call_.ldw, std::min(width(), n_ - j), panel, x_.rows,
                       count, first == 0, sums + j, ld_, ahead, y, call_.ldy});
      }
    }
  }

  const LinearCall& call_;
  const DotKernels& dot_;
  const PackedRows& x_;
  int64_t column_, n_, next_, ld_;
};

void run_panels(const LinearCall& call, const DotKernels& dot) {
  const int64_t width = kernels().linear.panel_columns;
  const int64_t block = ceil_div(call.m, ceil_div(call.m, kBlockRows));
  const bool far = block * packed_floats(dot, call.k) > kFarFloats;
  const int64_t tasks = pool_threads() * (far ? kFarTasksPerThread : kTasksPerThread);
  const int64_t most = round_up(far ? kernels().linear.far_columns : kTaskColumns, width);
  const int64_t columns = std::clamp(round_up(ceil_div(call.n, tasks), width), width, most);
  for (int64_t row = 0; row < call.m; row += block) {
    share(
        ceil_div(call.n, columns), kTasksTogether,
        [&] { return pack_rows(call, dot, row, std::min(block, call.m - row)); },
        [&](const PackedRows& x, int64_t task, const auto& next) {
          const int64_t column = task * columns, following = next();
          PanelTask(call, dot, x, column, std::min(columns, call.n - column), std::min(following * columns, call.n))
              .run();
          return following;
        });
  }
}

}  // namespace

Finish finish_of(const LinearCall& call, int64_t row, int64_t m, int64_t column, int64_t n) {
  Finish finish{};
  finish.bias = call.bias != nullptr ? call.bias + column : nullptr;
  finish.residual = call.residual != nullptr ? call.residual + row * call.ldr + column : nullptr;
  finish.y = call.y + row * call.ldy + column;
  finish.ldr = call.ldr;
  finish.ldy = call.ldy;
  finish.m = m;
  finish.n = n;
  finish.activation = call.activation;
  return finish;
}

void finish_block(const LinearCall& call, const float* sums, const float* up, int64_t ld_sums, int64_t row, int64_t m,
                  int64_t column, int64_t n) {
  Finish finish = finish_of(call, row, m, column, n);
  finish.sums = sums;
  finish.up = up;
  finish.ld_sums = finish.ld_up = ld_sums;
  kernels().linear.finish(finish);
}

const DotKernels& dot_kernels(int32_t w_dtype, int32_t math) {
  const LinearKernels& table = kernels().linear;
  if (w_dtype == QF_F32) return table.f32;
  if (w_dtype == QF_F16) return table.f16;
  return math == QF_MATH_BF16 ? table.bf16_products : table.bf16;
}

namespace {

const DotKernels& quant_kernels(const LinearCall& call) {
  const QuantKernels& table = kernels().quant;
  if (call.math == QF_MATH_INT8) return call.bits == 8 ? table.int8_x8 : table.int4_x8;
  return call.bits == 8 ? table.int8 : table.int4;
}

}  // namespace

void run_linear(const LinearCall& call) {
  if (call.m <= 0 || call.n <= 0) return;
  const bool bf16_products = call.w_dtype == QF_BF16 && call.math == QF_MATH_BF16;
  if (bf16_products && call.k > 0 && kernels().linear.bf16_tiles != nullptr) return run_tiles(call);
  const DotKernels& dot = call.bits != 0 ? quant_kernels(call) : dot_kernels(call.w_dtype, call.math);
  if (call.m < kPanelsFrom || call.k == 0 || dot.multiply == nullptr) {
    run_streaming(call, dot);
  } else {
    run_panels(call, dot);
  }
}

QfStatus linear(int32_t, const QfLinear* args) {
  const FloatRows x = normed_rows(args->x, args->norm_weight, args->m, args->k, args->ldx, args->norm_eps);
  run_linear({.x = x.data,
              .w = args->w,
              .bias = args->bias,
              .residual = static_cast<const float*>(args->residual),
              .y = static_cast<float*>(args->y),
              .m = args->m,
              .n = args->n,
              .k = args->k,
              .ldx = x.ld,
              .ldw = args->ldw,
              .ldr = args->ldr,
              .ldy = args->ldy,
              .w_dtype = args->w_dtype,
              .activation = args->activation,
              .math = args->math});
  return QF_OK;
}

QfStatus gated_linear(int32_t, const QfGatedLinear* args) {
  const FloatRows x = normed_rows(args->x, args->norm_weight, args->m, args->k, args->ldx, args->norm_eps);
  run_linear({.x = x.data,
              .w = args->w_gate,
              .w_up = args->w_up,
              .y = static_cast<float*>(args->y),
              .m = args->m,
              .n = args->n,
              .k = args->k,
              .ldx = x.ld,
              .ldw = args->ldw,
              .ldy = args->ldy,
              .w_dtype = args->w_dtype,
              .activation = args->activation,
              .math = args->math});
  return QF_OK;
}

}  // namespace qformer::cpu
