// The first include of every kernel: the macros and builtins by which one source compiles as CUDA (nvcc) and as plain
// C++ over the SIMT emulator (-DQF_EMULATED).
//
// cuda/prims/ is the only place with inline PTX. Each header defines typed functions for the device and, when emulated,
// takes the same names from their host model in test/emulator/, which executes and checks them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef QF_EMULATED
#include "builtins_model.h"
#define QF_KERNEL
#define QF_DEVICE inline
#define QF_HOST_DEVICE inline
#define QF_LAUNCH_BOUNDS(threads, blocks)
#else
#include <cuda_runtime.h>
#define QF_KERNEL __global__
#define QF_DEVICE __device__ __forceinline__
#define QF_HOST_DEVICE __host__ __device__ __forceinline__
// At most `threads` per block, and registers few enough that `blocks` of them fit on a multiprocessor.
#define QF_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#endif

// Host-side and emulated compilations know no architecture; device code asks for one with this.
#ifdef __CUDA_ARCH__
#define QF_DEVICE_ARCH __CUDA_ARCH__
#else
#define QF_DEVICE_ARCH 0
#endif

namespace qformer::cuda::prims {}
namespace qformer::cuda {
using namespace prims;
}
