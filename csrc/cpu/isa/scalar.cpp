// The kernels for any machine.

#define QF_ISA scalar
#define QF_ISA_SCALAR 1
#define QF_LEVEL "scalar"
#include "../kernel_set.h"

namespace qformer::cpu {
extern const CpuKernels kernels_scalar;
const CpuKernels kernels_scalar = scalar::kKernels;
}  // namespace qformer::cpu
