// The kernels for x86-64 with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)

#define QF_ISA avx512
#define QF_ISA_AVX512 1
#define QF_LEVEL "avx512"
#include "../kernel_set.h"

namespace qformer::cpu {
extern const CpuKernels kernels_avx512;
const CpuKernels kernels_avx512 = avx512::kKernels;
}  // namespace qformer::cpu

#endif
