// The CPU backend as the rest of the addon sees it: its table, and the size of its thread pool.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace qformer::cpu {

// The table of the CPU backend: one device, host memory.
const QfBackend* cpu_backend();

// Threads an op may use, the calling one included. The default is what affinity mask and cgroup quota allow.
int32_t threads();

// Sets that number for the whole process, clamped to [1, 1024].
void set_threads(int32_t count);

// Gives memory that malloc holds free back to the system, where malloc can. Tensor blocks kept for reuse stay.
void trim_memory();

}  // namespace qformer::cpu
