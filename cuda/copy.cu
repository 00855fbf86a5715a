// Strided copy with conversion.
//
// The axes are merged on the host (backend/copy_plan.h). Where the innermost axis is dense on both sides a thread moves
// chunks of 8 elements; where it is dense in y alone but another axis is dense in x (a transposition), 32 x 32 tiles
// turn in shared memory so that both sides move whole sectors; anything else goes element by element in the order of y.
// Traffic: x once in, y once out, except for the last kind.
#include "backend/copy_plan.h"
#include "element_move.cuh"
#include "entry.h"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;
constexpr int kTileRows = kThreads / kTile;
constexpr unsigned kMaxBlocks = 1u << 20;

struct CopyArgs {
  CopyPlan plan;
  const void* x;
  void* y;
  int64_t items;  // chunks, elements or tiles
  bool wide_x, wide_y;
};

// Element offset of row `row` of axes 0..2.
QF_DEVICE int64_t row_offset(const int64_t (&shape)[4], const int64_t (&strides)[4], int64_t row) {
  int64_t offset = 0;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    if (shape[axis] == 1) continue;
    offset += row % shape[axis] * strides[axis];
    row /= shape[axis];
  }
  return offset;
}

template <class Body>
QF_DEVICE void for_each_item(int64_t items, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) body(i);
}

template <class M>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) copy_chunks(CopyArgs args) {
  const Global<const typename M::From> x(static_cast<const typename M::From*>(args.x));
  const Global<typename M::To> y(static_cast<typename M::To*>(args.y));
  const CopyPlan& plan = args.plan;
  const int64_t cols = plan.shape[3], chunks = (cols + kChunk - 1) / kChunk;
  for_each_item(args.items, [&](int64_t item) {
    const int64_t row = args.items == chunks ? 0 : item / chunks, i = (item - row * chunks) * kChunk;
    M::chunk(x + row_offset(plan.shape, plan.x_strides, row), args.wide_x,
             y + row_offset(plan.shape, plan.y_strides, row), args.wide_y, i, cols);
  });
}

template <class M>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) copy_elements(CopyArgs args) {
  const Global<const typename M::From> x(static_cast<const typename M::From*>(args.x));
  const Global<typename M::To> y(static_cast<typename M::To*>(args.y));
  const CopyPlan& plan = args.plan;
  for_each_item(args.items, [&](int64_t item) {
    const int64_t row = item / plan.shape[3], i = item % plan.shape[3];
    const auto value = x[row_offset(plan.shape, plan.x_strides, row) + i * plan.x_strides[3]];
    y.store(row_offset(plan.shape, plan.y_strides, row) + i * plan.y_strides[3], M::element(value));
  });
}

// Axis 2 is dense in x, axis 3 in y. A block turns one tile of both at a time.
template <class M>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) copy_tiles(CopyArgs args) {
  SharedMemory shared;
  const Shared<typename M::To> tile = shared.take<typename M::To>(kTile * (kTile + 1));
  const Global<const typename M::From> x(static_cast<const typename M::From*>(args.x));
  const Global<typename M::To> y(static_cast<typename M::To*>(args.y));
  const CopyPlan& plan = args.plan;
  const int64_t rows = plan.shape[2], cols = plan.shape[3];
  const int64_t across = (cols + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
  const int lane = static_cast<int>(threadIdx.x) % kTile, first = static_cast<int>(threadIdx.x) / kTile;
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    const int64_t left = item % across * kTile, top = item / across % down * kTile, outer = item / (across * down);
    const int64_t i0 = outer / plan.shape[1], i1 = outer % plan.shape[1];
    const auto from = x + (i0 * plan.x_strides[0] + i1 * plan.x_strides[1]);
    const auto to = y + (i0 * plan.y_strides[0] + i1 * plan.y_strides[1]);
    for (int j = first; j < kTile; j += kTileRows) {
      if (top + lane >= rows || left + j >= cols) continue;
      tile.store(j * (kTile + 1) + lane, M::element(from[(left + j) * plan.x_strides[3] + top + lane]));
    }
    __syncthreads();
    for (int j = first; j < kTile; j += kTileRows) {
      if (left + lane >= cols || top + j >= rows) continue;
      to.store((top + j) * plan.y_strides[2] + left + lane, tile[lane * (kTile + 1) + j]);
    }
    __syncthreads();
  }
}

template <class T>
bool strides_are_wide(const void* base, const int64_t (&shape)[4], const int64_t (&strides)[4]) {
  bool wide = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (int axis = 0; axis < 3; ++axis)
    wide = wide && rows_are_wide(static_cast<const T*>(nullptr), shape[axis], strides[axis]);
  return wide;
}

// Puts an axis that is dense in x in place 2, so that copy_tiles can take it. False where there is none.
bool turn_to_tiles(CopyPlan& plan) {
  if (plan.y_strides[3] != 1 || plan.shape[3] < kTile / 2) return false;
  for (int axis = 2; axis >= 0; --axis) {
    if (plan.x_strides[axis] != 1 || plan.shape[axis] < kTile / 2) continue;
    const auto swap = [&](int64_t(&values)[4]) {
      const int64_t kept = values[axis];
      values[axis] = values[2];
      values[2] = kept;
    };
    swap(plan.shape);
    swap(plan.x_strides);
    swap(plan.y_strides);
    return true;
  }
  return false;
}

unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return blocks < kMaxBlocks ? static_cast<unsigned>(blocks) : kMaxBlocks;
}

template <class M>
QfStatus launch_copy(cudaStream_t stream, CopyArgs args) {
  CopyPlan& plan = args.plan;
  const int64_t rows = plan.shape[0] * plan.shape[1] * plan.shape[2], cols = plan.shape[3];
  if (plan.x_strides[3] == 1 && plan.y_strides[3] == 1) {
    args.items = rows * ((cols + kChunk - 1) / kChunk);
    args.wide_x = strides_are_wide<typename M::From>(args.x, plan.shape, plan.x_strides);
    args.wide_y = strides_are_wide<typename M::To>(args.y, plan.shape, plan.y_strides);
    return launch("copy", stream, copy_chunks<M>, dim3(blocks_for(args.items, kThreads)), dim3(kThreads), 0, args);
  }
  if (turn_to_tiles(plan)) {
    args.items = plan.shape[0] * plan.shape[1] * ((plan.shape[2] + kTile - 1) / kTile) * ((cols + kTile - 1) / kTile);
    return launch("copy", stream, copy_tiles<M>, dim3(blocks_for(args.items, 1)), dim3(kThreads),
                  shared_bytes<typename M::To>(kTile * (kTile + 1)), args);
  }
  args.items = rows * cols;
  return launch("copy", stream, copy_elements<M>, dim3(blocks_for(args.items, kThreads)), dim3(kThreads), 0, args);
}

}  // namespace

QfStatus copy(int32_t device, const QfCopy* op) {
  return visit_move("copy", op->x_dtype, op->y_dtype, [&](auto move) -> QfStatus {
    for (const int64_t extent : op->shape) {
      if (extent == 0) return QF_OK;
    }
    const CopyArgs args = {plan_copy(*op), op->x, op->y, 0, false, false};
    return launch_copy<decltype(move)>(context_of(device).stream, args);
  });
}

}  // namespace qformer::cuda
