// The k largest entries of each row in descending order, the lowest id first among equals; NaN ranks above everything.
// Small k: one pass with a heap of the best so far, 64 entries at a time skipped when none beats its root. Large k: the
// k-th largest key by radix selection, then a sort of the k survivors. Traffic: a row is read once (small k).

#include <algorithm>
#include <bit>

#include "error.h"
#include "families.h"
#include "scratch.h"
#include "select.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kHeapLimit = 128;
constexpr int64_t kBlock = 64;

struct Entry {
  uint32_t key;
  int32_t id;
};

bool ranks_before(const Entry& a, const Entry& b) { return a.key != b.key ? a.key > b.key : a.id < b.id; }

// True where some entry may exceed `limit`; NaN counts as one.
bool any_above(const float* x, float limit) {
  int found = 0;
  for (int64_t i = 0; i < kBlock; ++i) found |= !(x[i] <= limit);
  return found != 0;
}

// best: heap of k entries whose root is the worst of them.
void collect_by_heap(const float* x, int64_t cols, int64_t k, Entry* best) {
  for (int64_t i = 0; i < k; ++i) best[i] = {order_key(x[i]), static_cast<int32_t>(i)};
  std::make_heap(best, best + k, ranks_before);
  int64_t i = k;
  while (i < cols) {
    if (i + kBlock <= cols && best[0].key != UINT32_MAX && !any_above(x + i, x[best[0].id])) {
      i += kBlock;
      continue;
    }
    for (const int64_t end = std::min(i + kBlock, cols); i < end; ++i) {
      const Entry entry = {order_key(x[i]), static_cast<int32_t>(i)};
      if (!ranks_before(entry, best[0])) continue;
      std::pop_heap(best, best + k, ranks_before);
      best[k - 1] = entry;
      std::push_heap(best, best + k, ranks_before);
    }
  }
}

void collect_by_radix(const float* x, int64_t cols, int64_t k, Entry* best) {
  const uint32_t limit = kth_largest_key(x, cols, k);
  int64_t above = 0;
  for (int64_t i = 0; i < cols; ++i) above += order_key(x[i]) > limit;
  int64_t equal = k - above, count = 0;
  for (int64_t i = 0; i < cols && count < k; ++i) {
    const uint32_t key = order_key(x[i]);
    if (key > limit || (key == limit && equal-- > 0)) best[count++] = {key, static_cast<int32_t>(i)};
  }
}

}  // namespace

QfStatus top_k(int32_t, const QfTopK* args) {
  const auto& a = *args;
  if (a.k < 0 || a.k > a.cols) {
    return fail(QF_INVALID_ARGUMENT, "topK: k must be in [0, %lld], got %lld", static_cast<long long>(a.cols),
                static_cast<long long>(a.k));
  }
  if (a.k == 0) return QF_OK;
  parallel_for(a.rows, grain_for(2.0 * static_cast<double>(a.cols)), [&](int64_t begin, int64_t end) {
    auto* best = static_cast<Entry*>(thread_scratch(Scratch::kExtra, static_cast<size_t>(a.k) * sizeof(Entry)));
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x + row * a.cols;
      a.k <= kHeapLimit ? collect_by_heap(x, a.cols, a.k, best) : collect_by_radix(x, a.cols, a.k, best);
      std::sort(best, best + a.k, ranks_before);
      for (int64_t i = 0; i < a.k; ++i) {
        a.values[row * a.k + i] = x[best[i].id];
        a.ids[row * a.k + i] = best[i].id;
      }
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
