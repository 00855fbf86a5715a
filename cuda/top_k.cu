// The k largest entries of each row in descending order, the lowest id first among equals; NaN ranks above everything.
//
// A block per row: radix selection of the k-th key, one walk that collects the k survivors in any order, then a bitonic
// sort of (key, id), which are all different. Up to 4096 survivors are sorted in shared memory, more in the workspace.
// Traffic: the row from memory once, then four walks in L2. Source: Batcher 1968 (bitonic sort).
#include "entry.h"
#include "radix_select.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kMaxShared = 4096;

struct TopKArgs {
  QfTopK op;
  uint64_t* entries;  // [rows, padded] where shared memory is too small, else null
  int32_t padded;     // k rounded up to a power of two
  bool wide;
};

// Ascending order of entries is descending order of keys, ascending of ids.
QF_DEVICE uint64_t entry_of(uint32_t key, int32_t id) {
  return static_cast<uint64_t>(0xffffffffu - key) << 32 | static_cast<uint32_t>(id);
}

template <class Entries>
QF_DEVICE void sort_entries(const Entries& entries, int32_t count) {
  for (int32_t size = 2; size <= count; size *= 2) {
    for (int32_t stride = size / 2; stride > 0; stride /= 2) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count / 2; i += kRowThreads) {
        const int32_t low = i / stride * stride * 2 + i % stride, high = low + stride;
        const uint64_t a = entries[low], b = entries[high];
        if ((a > b) == ((low & size) == 0)) {
          entries.store(low, b);
          entries.store(high, a);
        }
      }
      __syncthreads();
    }
  }
}

template <class Entries>
QF_DEVICE void collect_and_sort(const TopKArgs& args, const ScoreRow& row, RowBlock& block, const Entries& entries) {
  const auto k = static_cast<int32_t>(args.op.k);
  const auto key = [](float x) { return order_key(x); };
  const Selected selected =
      select_by_mass(row, block, static_cast<uint64_t>(row.vocab - k), key, [](float) { return uint64_t{1}; });
  const uint64_t above = static_cast<uint64_t>(row.vocab) - selected.below - selected.at;
  const uint64_t equal = static_cast<uint64_t>(k) - above;
  const int32_t past = equal == selected.at ? row.vocab : nth_of_key(row, block, selected.key, equal, key);
  const Shared<uint32_t> count = block.select.low;  // the bins have served
  if (threadIdx.x == 0) count.store(0, 0);
  for (int32_t i = k + static_cast<int32_t>(threadIdx.x); i < args.padded; i += kRowThreads) {
    entries.store(i, 0xffffffffffffffffull);
  }
  __syncthreads();
  for_each_score(row, [&](int32_t id, float x) {
    const uint32_t own = order_key(x);
    if (own < selected.key || (own == selected.key && id >= past)) return;
    entries.store(static_cast<int32_t>(atomic_add(count, 0, 1u)), entry_of(own, id));
  });
  __syncthreads();
  sort_entries(entries, args.padded);
  const Global<float> values = Global<float>(args.op.values) + static_cast<int64_t>(blockIdx.x) * k;
  const Global<int32_t> ids = Global<int32_t>(args.op.ids) + static_cast<int64_t>(blockIdx.x) * k;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < k; i += kRowThreads) {
    const auto id = static_cast<int32_t>(static_cast<uint32_t>(entries[i]));
    ids.store(i, id);
    values.store(i, row.x[id]);
  }
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kRowThreads, 1) top_k_rows(TopKArgs args) {
  SharedMemory shared;
  RowBlock block(shared);
  const int64_t b = blockIdx.x;
  const ScoreRow row = {Global<const float>(args.op.x) + b * args.op.cols, static_cast<int32_t>(args.op.cols),
                        args.wide};
  if (args.entries == nullptr) {
    collect_and_sort(args, row, block, shared.take<uint64_t>(args.padded));
  } else {
    collect_and_sort(args, row, block, Global<uint64_t>(args.entries) + b * args.padded);
  }
}

}  // namespace

QfStatus top_k(int32_t device, const QfTopK* op) {
  if (op->k < 0 || op->k > op->cols) {
    return fail(QF_INVALID_ARGUMENT, "topK: k must be in [0, %lld], got %lld", static_cast<long long>(op->cols),
                static_cast<long long>(op->k));
  }
  if (op->rows == 0 || op->k == 0) return QF_OK;
  if (op->cols > kMaxVocab) return fail(QF_UNSUPPORTED, "topK: more than %d columns", static_cast<int>(kMaxVocab));
  DeviceContext& context = context_of(device);
  TopKArgs args = {*op, nullptr, 1, rows_are_wide(op->x, op->rows, op->cols)};
  while (args.padded < op->k) args.padded *= 2;
  size_t bytes = select_bytes();
  if (args.padded <= kMaxShared) {
    bytes += shared_bytes<uint64_t>(static_cast<size_t>(args.padded));
  } else {
    void* entries = nullptr;
    const size_t needed = static_cast<size_t>(op->rows) * static_cast<size_t>(args.padded) * sizeof(uint64_t);
    if (const QfStatus status = context.scratch(needed, &entries); status != QF_OK) return status;
    args.entries = static_cast<uint64_t*>(entries);
  }
  return launch("topK", context.stream, top_k_rows, dim3(static_cast<unsigned>(op->rows)), dim3(kRowThreads), bytes,
                args);
}

}  // namespace qformer::cuda
