// The emulator's own interface: launching a kernel, and what tests set and read.
//
//   emulator::run(kernel<Half>, grid, block, shared_bytes, args)   for tests: returns the fault's text, empty when none
//   emulator::launch(name, stream, grid, block, shared_bytes, body) for runtime/launch.h: a stream operation
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cuda_runtime_api.h"
#include "machine.h"

namespace qformer::emulator {

// Runs the body once per thread of the grid, or adds it to the graph the stream captures.
cudaError_t launch(const char* name, cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes,
                   std::function<void()> body);

// Text of the pending fault, which it clears: the device is usable again. Empty when there is none.
std::string take_fault(FaultKind* kind = nullptr);

template <class... Params, class... Args>
std::string run(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  const cudaError_t error =
      launch("kernel", nullptr, grid, block, shared_bytes, [kernel, args...] { kernel(static_cast<Params>(args)...); });
  const std::string fault = take_fault();
  return fault.empty() && error != cudaSuccess ? cudaGetErrorString(error) : fault;
}

// Settings, as the environment gives them at first use:
//   QFORMER_EMULATED_ARCH    75 | 80 (default) | 86 | 89 | 90
//   QFORMER_EMULATOR_SEED    0: plain order, copies as late as possible; other (default 1): drawn per launch
void set_arch(int arch);
void set_seed(uint64_t seed);
void count_bank_conflicts(bool on);
Counters& counters();

// For an allocator above cudaMalloc that keeps blocks: says which bytes of a block are in use now, so that bounds are
// exact and old contents count as uninitialised. begin must be a pointer from cudaMalloc.
void lease(void* begin, size_t bytes);

}  // namespace qformer::emulator
