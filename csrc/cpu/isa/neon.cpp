// The kernels for 64-bit ARM.
#if defined(__aarch64__)

#define QF_ISA neon
#define QF_ISA_NEON 1
#define QF_LEVEL "neon"
#include "../kernel_set.h"

namespace qformer::cpu {
extern const CpuKernels kernels_neon;
const CpuKernels kernels_neon = neon::kKernels;
}  // namespace qformer::cpu

#endif
