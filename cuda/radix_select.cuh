// Selection on one row without sorting it: the score at which the mass of all lower scores passes a threshold. With a
// mass of 1 each that is the k-th largest, with probabilities it is the border of a nucleus.
//
// A radix descent over 32-bit order keys in three passes of 11, 11 and 10 bits. Each pass adds masses into 2048 bins in
// shared memory with integer atomics (sums as two 32-bit words, the carry by hand), then a scan over the bins finds
// the one that holds the threshold. All integers: the result does not depend on the order of the atomics.
#pragma once

#include "sampling_row.cuh"

namespace qformer::cuda {

constexpr int kBins = 2048;

struct Selected {
  uint32_t key;    // of the scores at the border
  uint64_t below;  // mass of the lower ones
  uint64_t at;     // mass of the border itself
};

struct SelectScratch {
  Shared<uint32_t> low, high;  // [kBins] words of the bins
  Shared<uint64_t> found;      // [3] bin, mass before it, mass in it
};

constexpr size_t select_bytes() {
  return 2 * shared_bytes<uint32_t>(kBins) + shared_bytes<uint64_t>(3) + shared_bytes<uint64_t>(WarpExchange::kSlots);
}

// What every kernel of this kind carves, in this order.
struct RowBlock {
  SelectScratch select;
  WarpExchange exchange;

  QF_DEVICE explicit RowBlock(SharedMemory& shared)
      : select{shared.take<uint32_t>(kBins), shared.take<uint32_t>(kBins), shared.take<uint64_t>(3)},
        exchange(shared.take<uint64_t>(WarpExchange::kSlots)) {}
};

QF_DEVICE void add_to_bin(const SelectScratch& scratch, uint32_t bin, uint64_t mass) {
  const auto low = static_cast<uint32_t>(mass);
  const uint32_t old = atomic_add(scratch.low, static_cast<int>(bin), low);
  const uint32_t high = static_cast<uint32_t>(mass >> 32) + (old + low < old ? 1 : 0);
  if (high != 0) atomic_add(scratch.high, static_cast<int>(bin), high);
}

// The first bin at which the running sum of the bins exceeds `threshold`; the sum of all must.
QF_DEVICE void find_bin(RowBlock& block, uint64_t threshold) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  constexpr int kPerThread = kBins / kRowThreads;
  uint64_t bins[kPerThread], sum = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int bin = thread * kPerThread + j;
    bins[j] = static_cast<uint64_t>(block.select.high[bin]) << 32 | block.select.low[bin];
    sum += bins[j];
  }
  const uint64_t running = warp_running_sum(sum);
  const uint64_t of_warp = __shfl_sync(kFullWarp, running, 31);
  const uint64_t warps = warp_running_sum(block.exchange(of_warp));
  const uint64_t before_warp = warp == 0 ? 0 : __shfl_sync(kFullWarp, warps, warp - 1);
  uint64_t before = before_warp + running - sum;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    if (before <= threshold && before + bins[j] > threshold) {
      block.select.found.store(0, static_cast<uint64_t>(thread * kPerThread + j));
      block.select.found.store(1, before);
      block.select.found.store(2, bins[j]);
    }
    before += bins[j];
  }
  __syncthreads();
}

// The lowest key such that the mass of all scores up to it exceeds `threshold`, which must be below the mass of the
// row. key(score), mass(score): of one score.
template <class Key, class Mass>
QF_DEVICE Selected select_by_mass(const ScoreRow& row, RowBlock& block, uint64_t threshold, const Key& key,
                                  const Mass& mass) {
  Selected selected = {0, 0, 0};
#pragma unroll 1
  for (int level = 0; level < 3; ++level) {
    const int shift = level == 0 ? 21 : level == 1 ? 10 : 0, bits = level == 2 ? 10 : 11;
    const uint32_t digits = (1u << bits) - 1;
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kRowThreads) {
      block.select.low.store(bin, 0);
      block.select.high.store(bin, 0);
    }
    __syncthreads();
    for_each_score(row, [&](int32_t, float score) {
      const uint32_t k = key(score);
      if (level > 0 && k >> (shift + bits) != selected.key) return;
      const uint64_t m = mass(score);
      if (m != 0) add_to_bin(block.select, k >> shift & digits, m);
    });
    __syncthreads();
    find_bin(block, threshold - selected.below);
    selected.key = selected.key << bits | static_cast<uint32_t>(block.select.found[0]);
    selected.below += block.select.found[1];
    selected.at = block.select.found[2];
    __syncthreads();  // found and the bins may change again
  }
  return selected;
}

// The id of entry number n, from 0, among those with this key in the order of ids; `vocab` where there are no more.
template <class Key>
QF_DEVICE int32_t nth_of_key(const ScoreRow& row, RowBlock& block, uint32_t wanted, uint64_t n, const Key& key) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t width = (row.vocab + kRowThreads - 1) / kRowThreads * 32;  // ids of a warp
  const int32_t begin = warp * width;
  const auto matches = [&](int32_t i) {
    return __ballot_sync(kFullWarp, i + lane < row.vocab && key(row.x[i + lane]) == wanted);
  };
  uint64_t count = 0;
  for (int32_t i = begin; i < begin + width; i += 32) count += static_cast<uint64_t>(__popc(matches(i)));
  if (threadIdx.x == 0) block.select.found.store(0, static_cast<uint64_t>(row.vocab));
  const uint64_t warps = warp_running_sum(block.exchange(count));
  const uint64_t before = __shfl_sync(kFullWarp, warps, warp) - count;
  if (before <= n && n < before + count) {
    uint64_t left = n - before;
    for (int32_t i = begin; i < begin + width; i += 32) {
      unsigned found = matches(i);
      const auto here = static_cast<uint64_t>(__popc(found));
      if (left >= here) {
        left -= here;
        continue;
      }
      for (; left > 0; --left) found &= found - 1;
      if (lane == 0) block.select.found.store(0, static_cast<uint64_t>(i + __ffs(static_cast<int>(found)) - 1));
      break;
    }
  }
  __syncthreads();
  const auto id = static_cast<int32_t>(block.select.found[0]);
  __syncthreads();
  return id;
}

}  // namespace qformer::cuda
