// Programmatic dependent launch: a kernel may start before its predecessor in the stream has ended.
//
// Before grid_dependency_wait() only memory that no earlier kernel of the stream writes may be touched (weights).
// Nothing below sm_90, where launches are never overlapped. PTX ISA, "griddepcontrol".
#pragma once

#include "prims/global.h"

namespace qformer::cuda::prims {

// Waits until the kernels this one depends on have ended and their writes are visible.
QF_DEVICE void grid_dependency_wait() {
#if QF_DEVICE_ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Allows the next kernel of the stream to start once every block of this one has called it or ended.
QF_DEVICE void grid_dependency_launch() {
#if QF_DEVICE_ARCH >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for element i's line in L2, ahead of grid_dependency_wait(). Unlike a load it may name memory that an earlier
// kernel still writes: L2 is where those writes arrive. Nothing where launches do not overlap.
template <class T>
QF_DEVICE void grid_dependency_prefetch(Global<const T> p, int64_t i) {
#if QF_DEVICE_ARCH >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p.data() + i));
#else
  (void)p;
  (void)i;
#endif
}

}  // namespace qformer::cuda::prims
