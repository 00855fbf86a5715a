// The caching allocator of one GPU. cudaMalloc costs tens of microseconds and cudaFree waits for the device, so freed
// blocks stay in free lists, one set per stream: memory freed on a stream is taken again by later work of the same
// stream, which the device runs after whatever used it before, so nobody waits. When memory runs out all idle blocks go
// back to CUDA and the allocation is tried once more.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "runtime/error.h"

namespace qformer::cuda {

class DeviceContext;

class DeviceMemory {
 public:
  // Off: every block is its own cudaMalloc of the exact size and its own cudaFree. So the emulator, which checks each
  // access against the allocations, sees every tensor by itself.
  void set_caching(bool on);
  // 256-byte aligned. QF_OUT_OF_MEMORY with the bytes requested and free in the message.
  QfStatus allocate(DeviceContext& context, size_t bytes, void** out);
  // Returns a block to its owner's list; null and unknown pointers are ignored.
  void release(void* ptr);
  // Gives every idle block back to CUDA; waits for the streams they belong to.
  void trim();
  // Bytes that an allocation could get: free on the device plus idle here.
  size_t available() const;
  size_t idle_bytes() const;

 private:
  struct Block {
    size_t bytes;
    DeviceContext* owner;
    bool idle;
  };
  using FreeList = std::multimap<size_t, void*>;

  void* take_idle(DeviceContext& context, size_t block_bytes);
  void trim_locked();

  mutable std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  std::unordered_map<DeviceContext*, FreeList> idle_;
  size_t idle_bytes_ = 0;
#ifdef QF_EMULATED
  bool caching_ = false;
#else
  bool caching_ = true;
#endif
};

// Block sizes are an eighth of a power of two apart (at least 512 bytes): at most 12.5 % is wasted.
size_t block_size_for(size_t bytes);

}  // namespace qformer::cuda
