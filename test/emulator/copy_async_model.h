// cp.async of prims/copy_async.h, as late as it may be: the target is poisoned at issue, the bytes move at a moment
// drawn from the seed, at the latest in the wait that retires their group, and only then may anyone read them.
#pragma once

#include "prims/global.h"
#include "prims/shared.h"

namespace qformer::emulator {

#ifdef QF_EMULATOR_UNCHECKED

// At once, which is one of the moments at which the bytes may move.
inline void copy_async(SharedPlace destination, const void* source, bool valid, Site) {
  if (valid)
    memcpy(destination.address, source, 16);
  else
    memset(destination.address, 0, 16);
}
inline void commit_copies() {}
constexpr uint32_t kAllCopies = 0;
inline void wait_copies(uint32_t) {}

#else

void copy_async(const SharedPlace& destination, const void* source, bool valid, Site site);
void commit_copies();
// Retires all but the youngest `pending` groups of the current thread; kAllCopies: also what is not committed.
constexpr uint32_t kAllCopies = 0xffffffffu;
void wait_copies(uint32_t pending);

#endif

}  // namespace qformer::emulator

namespace qformer::cuda::prims {

template <class T>
void cp_async16(Shared<T> dst, Global<const T> src, bool valid = true, Site site = Site()) {
  emulator::copy_async(dst.place(), src.data(), valid, site);
}
template <class T>
void cp_async16(Shared<T> dst, Global<T> src, bool valid = true, Site site = Site()) {
  emulator::copy_async(dst.place(), src.data(), valid, site);
}
inline void cp_async_commit() { emulator::commit_copies(); }
template <int N>
void cp_async_wait() {
  emulator::wait_copies(N);
}
inline void cp_async_wait_all() { emulator::wait_copies(emulator::kAllCopies); }

}  // namespace qformer::cuda::prims
