// Rows picked by id: embedding and gather (with conversion), scatter.
//
// A block per token and run of columns, 8 elements per thread. A bad id raises the fault flag; its row of y is zeros
// (gather) or goes nowhere (scatter), the other rows are right. Traffic: each row once in, once out.
#include "element_move.cuh"
#include "entry.h"
#include "prims/fault.h"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kMaxThreads = 256;

struct GatherArgs {
  QfGatherRows op;
  int32_t* fault;
  bool wide_table, wide_y;
};

struct ScatterArgs {
  QfScatterRows op;
  int32_t* fault;
  bool wide_src, wide_dst;
};

// First column of this thread.
QF_DEVICE int64_t first_column() { return (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kChunk; }

// The row an id names, or -1 with a fault.
QF_DEVICE int64_t checked_row(Global<const int32_t> ids, int64_t token, int64_t rows, int32_t* fault) {
  const int32_t id = ids[token];
  if (id >= 0 && id < rows) return id;
  if (threadIdx.x == 0 && blockIdx.y == 0) report_fault(Global<int32_t>(fault), kFaultIdOutOfRange);
  return -1;
}

template <class M>
QF_KERNEL void QF_LAUNCH_BOUNDS(kMaxThreads, 1) gather_chunks(GatherArgs args) {
  const auto& op = args.op;
  const int64_t token = blockIdx.x, i = first_column();
  const int64_t row = checked_row(op.ids, token, op.rows, args.fault);
  if (i >= op.cols) return;
  const Global<typename M::To> y = Global<typename M::To>(static_cast<typename M::To*>(op.y)) + token * op.cols;
  if (row < 0) {
    for (int64_t j = i; j < i + kChunk && j < op.cols; ++j) y.store(j, typename M::To{});
    return;
  }
  const Global<const typename M::From> table(static_cast<const typename M::From*>(op.table));
  M::chunk(table + row * op.ld, args.wide_table, y, args.wide_y, i, op.cols);
}

template <class M>
QF_KERNEL void QF_LAUNCH_BOUNDS(kMaxThreads, 1) scatter_chunks(ScatterArgs args) {
  const auto& op = args.op;
  const int64_t token = blockIdx.x, i = first_column();
  const int64_t row = checked_row(op.ids, token, op.rows, args.fault);
  if (i >= op.cols || row < 0) return;
  const Global<const typename M::From> src(static_cast<const typename M::From*>(op.src));
  const Global<typename M::To> dst(static_cast<typename M::To*>(op.dst));
  M::chunk(src + token * op.lds, args.wide_src, dst + row * op.ldd, args.wide_dst, i, op.cols);
}

struct Blocks {
  dim3 grid, block;
};

Blocks blocks_of(int64_t tokens, int64_t cols) {
  const int64_t chunks = (cols + kChunk - 1) / kChunk;
  const int64_t threads = chunks < kMaxThreads ? (chunks + 31) / 32 * 32 : kMaxThreads;
  return {dim3(static_cast<unsigned>(tokens), static_cast<unsigned>((chunks + threads - 1) / threads)),
          dim3(static_cast<unsigned>(threads))};
}

}  // namespace

QfStatus gather_rows(int32_t device, const QfGatherRows* op) {
  if (op->tokens == 0 || op->cols == 0) return QF_OK;
  DeviceContext& context = context_of(device);
  return visit_move("gatherRows", op->dtype, op->out_dtype, [&](auto move) {
    using M = decltype(move);
    const GatherArgs args = {*op, context.fault(),
                             rows_are_wide(static_cast<const typename M::From*>(op->table), op->rows, op->ld),
                             rows_are_wide(static_cast<const typename M::To*>(op->y), op->tokens, op->cols)};
    const Blocks blocks = blocks_of(op->tokens, op->cols);
    return launch("gatherRows", context.stream, gather_chunks<M>, blocks.grid, blocks.block, 0, args);
  });
}

QfStatus scatter_rows(int32_t device, const QfScatterRows* op) {
  if (op->tokens == 0 || op->cols == 0) return QF_OK;
  DeviceContext& context = context_of(device);
  return visit_raw_move(op->dtype, [&](auto move) {
    using M = decltype(move);
    const ScatterArgs args = {*op, context.fault(),
                              rows_are_wide(static_cast<const typename M::From*>(op->src), op->tokens, op->lds),
                              rows_are_wide(static_cast<const typename M::To*>(op->dst), op->rows, op->ldd)};
    const Blocks blocks = blocks_of(op->tokens, op->cols);
    return launch("scatterRows", context.stream, scatter_chunks<M>, blocks.grid, blocks.block, 0, args);
  });
}

}  // namespace qformer::cuda
