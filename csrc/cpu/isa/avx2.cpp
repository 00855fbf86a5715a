// The kernels for x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__)

#define QF_ISA avx2
#define QF_ISA_AVX2 1
#define QF_LEVEL "avx2"
#include "../kernel_set.h"

namespace qformer::cpu {
extern const CpuKernels kernels_avx2;
const CpuKernels kernels_avx2 = avx2::kKernels;
}  // namespace qformer::cpu

#endif
