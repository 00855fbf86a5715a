#include "runtime/memory.h"

#include <algorithm>

#include "runtime/device.h"

namespace qformer::cuda {
namespace {

constexpr size_t kMinBlock = 512;
// A larger idle block serves a request when it is at most this much larger.
constexpr size_t kSlackDivisor = 4;

size_t power_of_two_below(size_t value) {
  size_t power = 1;
  while (power <= value / 2) power *= 2;
  return power;
}

size_t device_free_bytes() {
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

}  // namespace

size_t block_size_for(size_t bytes) {
  bytes = std::max(bytes, kMinBlock);
  const size_t step = std::max(kMinBlock, power_of_two_below(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

void DeviceMemory::set_caching(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!on) trim_locked();
  caching_ = on;
}

QfStatus DeviceMemory::allocate(DeviceContext& context, size_t bytes, void** out) {
  *out = nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  const bool representable = bytes <= SIZE_MAX / 4;
  const size_t block_bytes = !representable ? 0 : caching_ ? block_size_for(bytes) : std::max<size_t>(bytes, 1);
  if (representable) *out = take_idle(context, block_bytes);
  if (*out != nullptr) return QF_OK;

  cudaError_t error = representable ? cudaMalloc(out, block_bytes) : cudaErrorMemoryAllocation;
  if (error == cudaErrorMemoryAllocation && representable && idle_bytes_ > 0) {
    cudaGetLastError();
    trim_locked();
    error = cudaMalloc(out, block_bytes);
  }
  if (error == cudaSuccess) {
    blocks_.emplace(*out, Block{block_bytes, &context, false});
    return QF_OK;
  }
  *out = nullptr;
  if (error != cudaErrorMemoryAllocation) return check(error, "alloc");
  cudaGetLastError();
  return fail(QF_OUT_OF_MEMORY, "%s: cannot allocate %zu bytes, %zu bytes are free", context.device.name, bytes,
              device_free_bytes() + idle_bytes_);
}

void* DeviceMemory::take_idle(DeviceContext& context, size_t block_bytes) {
  FreeList& list = idle_[&context];
  const auto found = list.lower_bound(block_bytes);
  if (found == list.end() || found->first > block_bytes + block_bytes / kSlackDivisor) return nullptr;
  void* ptr = found->second;
  idle_bytes_ -= found->first;
  list.erase(found);
  blocks_.at(ptr).idle = false;
  return ptr;
}

void DeviceMemory::release(void* ptr) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = blocks_.find(ptr);
  if (found == blocks_.end() || found->second.idle) return;
  Block& block = found->second;
  if (!caching_) {
    cudaFree(ptr);
    blocks_.erase(found);
    return;
  }
  block.idle = true;
  idle_[block.owner].emplace(block.bytes, ptr);
  idle_bytes_ += block.bytes;
}

void DeviceMemory::trim() {
  std::lock_guard<std::mutex> lock(mutex_);
  trim_locked();
}

void DeviceMemory::trim_locked() {
  for (auto& [context, list] : idle_) {
    // A stream that is being captured cannot be waited for: its blocks stay.
    if (list.empty() || context->capturing || cudaStreamSynchronize(context->stream) != cudaSuccess) continue;
    for (const auto& [bytes, ptr] : list) {
      cudaFree(ptr);
      blocks_.erase(ptr);
      idle_bytes_ -= bytes;
    }
    list.clear();
  }
}

size_t DeviceMemory::available() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return device_free_bytes() + idle_bytes_;
}

size_t DeviceMemory::idle_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return idle_bytes_;
}

}  // namespace qformer::cuda
