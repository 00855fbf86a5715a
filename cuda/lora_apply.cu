// lora_apply: the adapter of each row added to y, in two launches: low = a · x into f32 scratch, y += scaling * b ·
// low.
//
// Both are streams of adapter bytes with hardly any arithmetic. A block serves one row when there are few, four when
// there are many: neighbours of the same adapter (a prompt) then share its bytes, neighbours of different ones (a
// decode step) go one after the other. A sum's order is the same either way: of low, each thread its chunks of 8
// columns ascending, a butterfly over the warp, the warps ascending; of y, one chain along the ranks.
//
// Traffic: a and b once per block of rows and x once per 4 ranks, mostly from L2. Registers on sm_90, 1 and 4 rows:
// low 55 and 96, y 39 and 44. Source: Hu et al. 2021; an adapter per row: Chen et al. 2023 (Punica).
#include "entry.h"
#include "prims/fault.h"
#include "prims/grid.h"
#include "row_chunks.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRanks = 4;  // of low per block
constexpr int kManyRows = 4;
constexpr int64_t kFewRows = 64;  // up to here a block per row: they fill the device better than shared reads help

struct ApplyArgs {
  QfLoraApply op;
  float* low;  // [m, ld_low]; zeros from rank on
  int64_t ld_low;
  int32_t* fault;
  bool wide_x, wide_a, wide_b;
};

// The adapter of a row, or -1 for none.
QF_DEVICE int adapter_of(const QfLoraApply& op, int64_t row) {
  const int slot = Global<const int32_t>(op.adapters).load(row);
  return slot < op.slots ? slot : -1;
}

// Rows from `row` on, before `end`, with its adapter.
template <int kRows>
QF_DEVICE int run_length(const QfLoraApply& op, int64_t row, int64_t end, int slot) {
  int length = 1;
  while (length < kRows && row + length < end && adapter_of(op, row + length) == slot) ++length;
  return length;
}

// blockIdx.x: rows; blockIdx.y: ranks.
template <class T, class W, int kRows>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 2) lora_low(ApplyArgs args) {
  grid_dependency_launch();
  grid_dependency_wait();
  const QfLoraApply& op = args.op;
  SharedMemory shared;
  const Shared<float> partials = shared.take<float>(kWarps * kRows * kRanks);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kRows, rank = static_cast<int64_t>(blockIdx.y) * kRanks;
  const int64_t end = begin + kRows < op.m ? begin + kRows : op.m;
  if (blockIdx.y == 0 && thread < end - begin && Global<const int32_t>(op.adapters).load(begin + thread) >= op.slots)
    report_fault(Global<int32_t>(args.fault), kFaultIdOutOfRange);

  for (int64_t row = begin; row < end;) {
    const int slot = adapter_of(op, row), run = run_length<kRows>(op, row, end, slot);
    float sums[kRows][kRanks] = {};
    if (slot >= 0) {
      const Global<const W> a = Global<const W>(static_cast<const W*>(op.a)) + slot * op.rank * op.k;
      const Global<const T> x = Global<const T>(static_cast<const T*>(op.x)) + row * op.ldx;
      for (int64_t column = thread * kChunk; column < op.k; column += kThreads * kChunk) {
        float factors[kRows][kChunk];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (r < run) load_chunk(x + r * op.ldx, column, op.k, args.wide_x, factors[r]);
#pragma unroll
        for (int i = 0; i < kRanks; ++i) {
          float weights[kChunk];
          const int64_t own = rank + i < op.rank ? rank + i : 0;  // past the last: dropped below
          load_chunk(a + own * op.k, column, op.k, args.wide_a, weights);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (r >= run) break;
#pragma unroll
            for (int e = 0; e < kChunk; ++e) sums[r][i] = fmaf(weights[e], factors[r][e], sums[r][i]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kRanks; ++i) {
        const float sum = warp_sum(sums[r][i]);
        const int64_t at = row - begin + r;
        if (lane == 0 && r < run) partials.store((warp * kRows + at) * kRanks + i, sum);
      }
    }
    row += run;
  }
  __syncthreads();
  if (thread >= (end - begin) * kRanks) return;
  const int64_t own = rank + thread % kRanks;
  float total = 0.0f;
  for (int w = 0; own < op.rank && w < kWarps; ++w) total += partials[w * kRows * kRanks + thread];
  Global<float>(args.low).store((begin + thread / kRanks) * args.ld_low + own, total);
}

// blockIdx.x: rows; blockIdx.y: columns of y, one per thread.
template <class T, class W, int kRows>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 2) lora_add(ApplyArgs args) {
  grid_dependency_launch();
  grid_dependency_wait();
  const QfLoraApply& op = args.op;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t end = begin + kRows < op.m ? begin + kRows : op.m;
  if (column >= op.n) return;
  for (int64_t row = begin; row < end;) {
    const int slot = adapter_of(op, row), run = run_length<kRows>(op, row, end, slot);
    if (slot >= 0) {
      const Global<const W> b = Global<const W>(static_cast<const W*>(op.b)) + (slot * op.n + column) * op.rank;
      const Global<const float> low = Global<const float>(args.low) + row * args.ld_low;
      float sums[kRows] = {};
      for (int64_t rank = 0; rank < op.rank; rank += kChunk) {
        float weights[kChunk];
        load_chunk(b, rank, op.rank, args.wide_b, weights);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= run) break;
          float factors[kChunk];
          load_chunk(low + r * args.ld_low, rank, args.ld_low, true, factors);
#pragma unroll
          for (int e = 0; e < kChunk; ++e) sums[r] = fmaf(weights[e], factors[e], sums[r]);
        }
      }
      const Global<T> y = Global<T>(static_cast<T*>(op.y)) + (row * op.ldy + column);
      const float scaling = Global<const float>(op.scaling).load(slot);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < run) y.store(r * op.ldy, from_float<T>(fmaf(scaling, sums[r], to_float(y.load(r * op.ldy)))));
    }
    row += run;
  }
}

template <class T, class W, int kRows>
QfStatus launch_rows(DeviceContext& context, const ApplyArgs& args) {
  const QfLoraApply& op = args.op;
  const auto blocks = [](int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); };
  const dim3 low_grid(blocks(op.m, kRows), blocks(args.ld_low, kRanks));
  const dim3 add_grid(blocks(op.m, kRows), blocks(op.n, kThreads));
  const QfStatus status = launch_dependent("loraApply", context.stream, lora_low<T, W, kRows>, low_grid, dim3(kThreads),
                                           shared_bytes<float>(kWarps * kRows * kRanks), args);
  if (status != QF_OK) return status;
  return launch_dependent("loraApply", context.stream, lora_add<T, W, kRows>, add_grid, dim3(kThreads), 0, args);
}

template <class T, class W>
QfStatus launch_apply(int32_t device, const QfLoraApply& op) {
  DeviceContext& context = context_of(device);
  ApplyArgs args{};
  args.op = op;
  args.ld_low = (op.rank + kChunk - 1) / kChunk * kChunk;
  args.fault = context.fault();
  args.wide_x = rows_are_wide(static_cast<const T*>(op.x), op.m, op.ldx);
  args.wide_a = rows_are_wide(static_cast<const W*>(op.a), op.slots * op.rank, op.k);
  args.wide_b = rows_are_wide(static_cast<const W*>(op.b), op.slots * op.n, op.rank);
  void* low = nullptr;
  const QfStatus status = context.scratch(static_cast<size_t>(op.m * args.ld_low) * sizeof(float), &low);
  if (status != QF_OK) return status;
  args.low = static_cast<float*>(low);
  return op.m <= kFewRows ? launch_rows<T, W, 1>(context, args) : launch_rows<T, W, kManyRows>(context, args);
}

}  // namespace

QfStatus lora_apply(int32_t device, const QfLoraApply* args) {
  if (args->m == 0 || args->n == 0 || args->rank == 0) return QF_OK;
  if (args->dtype == QF_F16) return launch_apply<Half, Half>(device, *args);
  if (args->dtype == QF_BF16) return launch_apply<BFloat16, BFloat16>(device, *args);
  switch (args->w_dtype) {
    case QF_F32:
      return launch_apply<float, float>(device, *args);
    case QF_F16:
      return launch_apply<float, Half>(device, *args);
    default:
      return launch_apply<float, BFloat16>(device, *args);
  }
}

}  // namespace qformer::cuda
