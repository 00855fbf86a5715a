// Linear layers on weights in place, [n, k] row-major f32 / f16 / bf16 or quantised.
//
// Threads share out columns of y (rows of w), never k. Each task fills a buffer of raw sums for its columns and then
// applies the epilogue (bias, activation, residual or gate) while they are in cache. Below kPackedFrom rows of x
// the weights stream by once, unpacked: memory traffic is n * k weights. Above, x is packed in blocks of rows and
// weight panels are packed into L1 on the fly: n * k weights per block of rows. From kOuterFrom rows on, outer products
// take over (linear_outer.cpp), for quantised weights as soon as they are faster. bf16 products on a matrix unit have
// ways of their own (linear_tiles.cpp).

#include "linear.h"

#include <algorithm>

#include "families.h"
#include "kernels.h"
#include "norm.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kPackedFrom = 17;
constexpr int64_t kOuterFrom = 128;
constexpr int64_t kMinBlockRows = 32;
constexpr int64_t kBlockBytes = 1 << 20;  // of packed x: it stays in L2 while all of w passes by
constexpr int64_t kTaskColumns = 48;
constexpr int64_t kStreamSums = 4096;  // raw sums waiting for their epilogue: 16 KiB of L1

// x as quantised products take it; ld: blocks of a row.
Operand quant_x(const LinearCall& call) {
  const QuantKernels& quant = kernels().quant;
  const int64_t blocks = ceil_div(call.k, quant.block_columns), row_bytes = blocks * quant.block_bytes;
  auto* packed = static_cast<char*>(thread_scratch(Scratch::kRoundedX, static_cast<size_t>(call.m * row_bytes)));
  parallel_for(call.m, grain_for(1.0 * static_cast<double>(call.k)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      quant_kernels(call).pack_x(call.x + i * call.ldx, call.k, call.group, packed + i * row_bytes);
    }
  });
  return {packed, blocks};
}

Operand prepare_x(const LinearCall& call, const DotKernels& dot) {
  if (call.w_dtype != QF_BF16 || call.math != QF_MATH_BF16) return {call.x, call.ldx};
  const LinearKernels& table = kernels().linear;
  void* rounded = thread_scratch(Scratch::kRoundedX, static_cast<size_t>(call.m * call.k * dot.x_size));
  parallel_for(call.m, grain_for(0.2 * static_cast<double>(call.k)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      table.round_to_bf16(call.x + i * call.ldx, call.k, static_cast<char*>(rounded) + i * call.k * dot.x_size);
    }
  });
  return {rounded, call.k};
}

void stream_columns(const LinearCall& call, const DotKernels& dot, Operand x, int64_t column, int64_t n) {
  const int64_t max_rows = call.bits != 0 ? kernels().quant.max_rows : kernels().linear.max_rows;
  const int64_t group = ceil_div(call.m, ceil_div(call.m, max_rows));
  float* sums =
      static_cast<float*>(thread_scratch(Scratch::kSums, static_cast<size_t>(2 * call.m * n) * sizeof(float)));
  float* up = call.w_up != nullptr ? sums + call.m * n : nullptr;
  const auto fill = [&](const void* w, float* out) {
    for (int64_t i = 0; i < call.m; i += group) {
      if (call.bits != 0) {
        quant_kernels(call).rows(offset(x.data, i * x.ld, kernels().quant.block_bytes), std::min(group, call.m - i),
                                 x.ld, quant_rows(call, column), n, out + i * n, n);
        continue;
      }
      dot.rows(offset(x.data, i * x.ld, dot.x_size), x.ld, std::min(group, call.m - i),
               offset(w, column * call.ldw, dot.w_size), call.ldw, n, call.k, out + i * n, n);
    }
  };
  fill(call.w, sums);
  if (up != nullptr) fill(call.w_up, up);
  finish_block(call, sums, up, n, 0, call.m, column, n);
}

void run_streaming(const LinearCall& call, const DotKernels& dot, Operand x) {
  const double row_bytes = call.bits != 0 ? static_cast<double>(call.k * call.bits) / 8 : call.k * dot.w_size;
  const double bytes = row_bytes * (call.w_up != nullptr ? 2 : 1);
  const double products = static_cast<double>(call.k * call.m) * (call.w_up != nullptr ? 2 : 1);
  const int64_t grain = std::min<int64_t>(round_up(grain_for(std::max(bytes / 15, products / 30)), 8), 1024);
  // Many columns at once: the weights are read as a few streams, and each should be long.
  const int64_t columns = kStreamSums / call.m;
  parallel_for(call.n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column += columns) {
      stream_columns(call, dot, x, column, std::min(columns, end - column));
    }
  });
}

// A block of packed rows of x.
struct PackedRows {
  const float* data;
  int64_t row, rows, tiles;
};

PackedRows pack_rows(const LinearCall& call, const DotKernels& dot, Operand x, int64_t row, int64_t rows) {
  const int64_t tile_m = kernels().linear.tile_m;
  const int64_t tiles = ceil_div(rows, tile_m);
  auto* packed = static_cast<float*>(
      thread_scratch(Scratch::kPackedX, static_cast<size_t>(tiles * tile_m * round_up(call.k, dot.step) * dot.x_size)));
  parallel_for(tiles, grain_for(0.2 * static_cast<double>(tile_m * call.k)), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t first = tile * tile_m;
      dot.pack_x(offset(x.data, (row + first) * x.ld, dot.x_size), x.ld, std::min(tile_m, rows - first), call.k, tile,
                 tiles, packed);
    }
  });
  return {packed, row, rows, tiles};
}

void packed_columns(const LinearCall& call, const DotKernels& dot, const PackedRows& x, int64_t column, int64_t n) {
  const LinearKernels& table = kernels().linear;
  const int64_t ld = round_up(n, table.tile_n);
  const int64_t padded_rows = x.tiles * table.tile_m;
  auto* panel = static_cast<float*>(thread_scratch(Scratch::kPackedW, static_cast<size_t>(table.panel_bytes)));
  auto* waiting = static_cast<float*>(thread_scratch(
      Scratch::kAccumulators, static_cast<size_t>(padded_rows * table.tile_n * kernels().lanes) * sizeof(float)));
  auto* sums =
      static_cast<float*>(thread_scratch(Scratch::kSums, static_cast<size_t>(2 * padded_rows * ld) * sizeof(float)));
  float* up = call.w_up != nullptr ? sums + padded_rows * ld : nullptr;
  const auto fill = [&](const void* w, float* out) {
    for (int64_t j = 0; j < n; j += table.tile_n) {
      dot.panel(x.data, x.tiles, offset(w, (column + j) * call.ldw, dot.w_size), call.ldw,
                std::min<int64_t>(table.tile_n, n - j), call.k, panel, waiting, out + j, ld);
    }
  };
  fill(call.w, sums);
  if (up != nullptr) fill(call.w_up, up);
  finish_block(call, sums, up, ld, x.row, x.rows, column, n);
}

// Rows of x per block. A block that L2 cannot hold halves the rate; one of few rows reads and packs w more often.
int64_t block_rows(const LinearCall& call, const DotKernels& dot) {
  const int64_t fitting = kBlockBytes / (round_up(call.k, dot.step) * dot.x_size);
  const int64_t rows = std::max(fitting, kMinBlockRows);
  return round_up(ceil_div(call.m, ceil_div(call.m, rows)), kernels().linear.tile_m);
}

void run_packed(const LinearCall& call, const DotKernels& dot, Operand x) {
  const int64_t tile_n = kernels().linear.tile_n;
  const int64_t per_thread = round_up(ceil_div(call.n, pool_threads() * 8), tile_n);
  const int64_t columns = std::clamp(per_thread, tile_n, round_up(kTaskColumns, tile_n));
  const int64_t block = block_rows(call, dot);
  for (int64_t row = 0; row < call.m; row += block) {
    const PackedRows packed = pack_rows(call, dot, x, row, std::min(block, call.m - row));
    parallel_for(ceil_div(call.n, columns), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        packed_columns(call, dot, packed, task * columns, std::min(columns, call.n - task * columns));
      }
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

const QuantDotKernels& quant_kernels(const LinearCall& call) {
  return call.bits == 8 ? kernels().quant.int8 : kernels().quant.int4;
}

QuantRows quant_rows(const LinearCall& call, int64_t row) {
  return {static_cast<const uint8_t*>(call.w) + row * (call.k * call.bits / 8),
          call.scales + row * (call.k / call.group), call.k, call.group};
}

const DotKernels& dot_kernels(int32_t w_dtype, int32_t math) {
  const LinearKernels& table = kernels().linear;
  if (w_dtype == QF_F32) return table.f32;
  if (w_dtype == QF_F16) return table.f16;
  return math == QF_MATH_BF16 ? table.bf16_products : table.bf16;
}

void run_linear(const LinearCall& call) {
  if (call.m <= 0 || call.n <= 0) return;
  const bool bf16_products = call.w_dtype == QF_BF16 && call.math == QF_MATH_BF16;
  if (bf16_products && call.k > 0 && kernels().linear.bf16_tiles != nullptr) return run_tiles(call);
  const DotKernels& dot = dot_kernels(call.w_dtype, call.math);
  if (call.bits != 0) {
    if (call.m >= kernels().quant.outer->from_rows && call.k > 0) return run_outer(call, dot, {call.x, call.ldx});
    return run_streaming(call, dot, quant_x(call));
  }
  const Operand x = prepare_x(call, dot);
  if (call.m < kPackedFrom || call.k == 0) {
    run_streaming(call, dot, x);
  } else if (call.m >= kOuterFrom) {
    run_outer(call, dot, x);
  } else {
    run_packed(call, dot, x);
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
