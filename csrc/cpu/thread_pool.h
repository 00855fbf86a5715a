// The CPU backend's thread pool: one per process, started by the first job that is large enough to share.
//
// Work is split by an atomic counter, never statically: the caller takes chunks too and in the end waits only for
// chunks that another thread has already claimed, so a core lost to another process costs one chunk, not the job.
// Workers spin for some tens of microseconds after a job and then sleep. Nested calls, and calls while another thread's
// job runs, run inline.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qformer::cpu {

// Number of threads a job may use, the caller included. At first: the CPUs this process may use (affinity mask, cgroup
// quota).
int32_t pool_threads();

// Sets the number of threads (1 to 1024, clamped); takes effect with the next job.
void set_pool_threads(int32_t threads);

namespace detail {
using RangeFunction = void (*)(const void* body, int64_t begin, int64_t end);
void run_ranges(int64_t count, int64_t grain, RangeFunction function, const void* body);
}  // namespace detail

// Calls body(begin, end) on disjoint ranges that cover [0, count), several at once. `grain` is the least number of
// items worth handing to another thread: about 20 µs of work (see grain_for). count <= grain runs on the caller alone.
// Ranges start at multiples of the chunk size, which is a multiple of grain. An exception of the body is rethrown here.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= std::max<int64_t>(grain, 1)) {
    if (count > 0) body(0, count);
    return;
  }
  detail::run_ranges(
      count, grain, [](const void* b, int64_t begin, int64_t end) { (*static_cast<const Body*>(b))(begin, end); },
      &body);
}

// The grain for items that take about `nanoseconds` each.
inline int64_t grain_for(double nanoseconds) {
  constexpr double kChunkNanoseconds = 20000;
  return nanoseconds >= kChunkNanoseconds
             ? 1
             : static_cast<int64_t>(kChunkNanoseconds / (nanoseconds > 1e-3 ? nanoseconds : 1e-3));
}

}  // namespace qformer::cpu
