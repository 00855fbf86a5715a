// Weak stand-ins for ops that have no kernel yet, so that the library always links: a family's own definition of an
// entry takes precedence. Callers read QF_UNSUPPORTED and the name of the op.
#include "entry.h"
#include "runtime/error.h"

namespace qformer::cuda {

#define QF_CUDA_UNSUPPORTED(name, Args)                                       \
  __attribute__((weak)) QfStatus name(int32_t, const Args*) {                 \
    return fail(QF_UNSUPPORTED, #name " has no kernel in this CUDA library"); \
  }
QF_OPS(QF_CUDA_UNSUPPORTED)
#undef QF_CUDA_UNSUPPORTED

}  // namespace qformer::cuda
