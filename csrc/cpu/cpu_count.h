// How many CPUs this process may really use: the affinity mask, lowered to the cgroup's CPU quota (v1 and v2).
#pragma once

#include <cstdint>

namespace qformer::cpu {

// CPUs in the affinity mask, at most the quota rounded up; at least 1.
int32_t usable_cpus();

}  // namespace qformer::cpu
