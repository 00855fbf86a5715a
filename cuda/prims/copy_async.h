// cp.async: 16 bytes from global to shared memory without passing through registers, in groups that are waited for.
//
// The bytes may land at any moment between issue and the wait that retires their group; after it they are visible to
// the issuing thread alone, to others only past a barrier. An invalid copy writes zeros and reads nothing. sm_75 has no
// cp.async: there the copy is a load and a store, and commit and wait do nothing. PTX ISA, "cp.async".
#pragma once

#include "prims/shared.h"

#ifdef QF_EMULATED
#include "copy_async_model.h"
#else

namespace qformer::cuda::prims {

template <class T>
QF_DEVICE void cp_async16(Shared<T> dst, Global<const T> src, bool valid = true) {
#if QF_DEVICE_ARCH >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst.address()), "l"(src.data()),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (valid) value = *reinterpret_cast<const uint4*>(src.data());
  *reinterpret_cast<uint4*>(dst.data()) = value;
#endif
}
template <class T>
QF_DEVICE void cp_async16(Shared<T> dst, Global<T> src, bool valid = true) {
  cp_async16(dst, Global<const T>(src), valid);
}

// Closes the group of the copies issued since the last commit.
QF_DEVICE void cp_async_commit() {
#if QF_DEVICE_ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's youngest groups are pending.
template <int N>
QF_DEVICE void cp_async_wait() {
#if QF_DEVICE_ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Waits for all copies of this thread, committed or not.
QF_DEVICE void cp_async_wait_all() {
#if QF_DEVICE_ARCH >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace qformer::cuda::prims

#endif
