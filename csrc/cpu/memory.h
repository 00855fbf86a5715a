// Tensor memory of the CPU device: 64-byte aligned blocks, recently freed ones kept for reuse.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"

namespace qformer::cpu {

// QF_OUT_OF_MEMORY names the bytes asked for and those free. Zero bytes give a valid, distinct pointer.
QfStatus allocate(size_t bytes, void** out);

// `bytes` is what allocate() was called with.
void release(void* ptr, size_t bytes);

// Bytes of physical memory, and what is available now (MemAvailable, lowered to the cgroup's limit).
int64_t total_memory();
int64_t available_memory();

}  // namespace qformer::cpu
