// Working memory of kernels: per thread, 64-byte aligned, grown when needed and then kept for the next call.
#pragma once

#include <cstddef>

namespace qformer::cpu {

// Two calls with different slots may be alive at once on one thread; the same slot again invalidates the earlier
// buffer.
enum class Scratch {
  kPackedX,
  kPackedW,
  kAccumulators,
  kSums,
  kPatches,
  kRow,
  kExtra,
  kNormedX,
  kProjected,
  kContext,
  kDequantized,
  kCount
};

// At least `bytes` of uninitialised memory owned by the calling thread; throws std::bad_alloc.
void* thread_scratch(Scratch slot, size_t bytes);

}  // namespace qformer::cpu
