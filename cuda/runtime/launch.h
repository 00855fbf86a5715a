// launch("name", stream, kernel, grid, block, shared_bytes, args...): puts a kernel on a stream.
//
// One way for all kernels: it asks for large shared memory, checks the launch, works inside a capture, and on the host
// runs the emulator. launch_dependent lets the kernel start while its predecessor ends (programmatic dependent launch,
// sm_90 and later; such a kernel calls grid_dependency_wait() before it touches memory); elsewhere it is launch.
#pragma once

#include <cstddef>

#include "prims/cuda.h"
#include "runtime/error.h"

#ifdef QF_EMULATED
#include "emulator/launch.h"
#endif

namespace qformer::cuda {

// What a launch needs once per kernel and device: the code is loaded (lazy loading inside a capture may fail) and large
// dynamic shared memory is granted.
QfStatus prepare_kernel(const char* name, const void* kernel, size_t shared_bytes);

// `params` points at each kernel parameter in turn.
QfStatus launch_raw(const char* name, cudaStream_t stream, const void* kernel, dim3 grid, dim3 block,
                    size_t shared_bytes, void** params, bool dependent);

inline bool is_empty(dim3 grid) { return grid.x == 0 || grid.y == 0 || grid.z == 0; }

#ifdef QF_EMULATED

template <class... Params, class... Args>
QfStatus launch(const char* name, cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block,
                size_t shared_bytes, Args... args) {
  if (is_empty(grid)) return QF_OK;
  return check(emulator::launch(name, stream, grid, block, shared_bytes,
                                [kernel, args...] { kernel(static_cast<Params>(args)...); }),
               name);
}

template <class... Params, class... Args>
QfStatus launch_dependent(const char* name, cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block,
                          size_t shared_bytes, Args... args) {
  return launch(name, stream, kernel, grid, block, shared_bytes, args...);
}

#else

template <class... Params>
QfStatus launch_with(bool dependent, const char* name, cudaStream_t stream, void (*kernel)(Params...), dim3 grid,
                     dim3 block, size_t shared_bytes, Params... args) {
  if (is_empty(grid)) return QF_OK;
  void* params[sizeof...(Params) + 1] = {&args..., nullptr};
  return launch_raw(name, stream, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, params, dependent);
}

template <class... Params, class... Args>
QfStatus launch(const char* name, cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block,
                size_t shared_bytes, Args... args) {
  return launch_with(false, name, stream, kernel, grid, block, shared_bytes, static_cast<Params>(args)...);
}

template <class... Params, class... Args>
QfStatus launch_dependent(const char* name, cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block,
                          size_t shared_bytes, Args... args) {
  return launch_with(true, name, stream, kernel, grid, block, shared_bytes, static_cast<Params>(args)...);
}

#endif

}  // namespace qformer::cuda
