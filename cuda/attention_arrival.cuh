// Several CTAs share a result: each writes its part to scratch, counts itself, and the one that comes last puts the
// parts together in a fixed order, in the same launch. Nobody waits, so the grid need not be resident at once.
#pragma once

#include "prims/global.h"
#include "prims/shared.h"

namespace qformer::cuda {

// True in all threads of the CTA that is the last of `count` to arrive; then all of their writes are visible to it.
QF_DEVICE bool arrive_last(Global<int32_t> counter, int32_t count, Shared<int32_t> flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // cumulative: after the barrier it covers the writes of the whole CTA
    const bool last = atomic_add(counter, 0, 1) == count - 1;
    if (last) counter.store(0, 0);  // for the next launch
    __threadfence();                // what the others published before they arrived is visible from here on
    flag.store(0, last ? 1 : 0);
  }
  __syncthreads();
  return flag.load(0) != 0;
}

}  // namespace qformer::cuda
