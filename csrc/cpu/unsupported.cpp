// Weak definitions of every op entry, so that the backend links while a family is missing. A family's own definition
// wins.

#include "error.h"
#include "families.h"

namespace qformer::cpu {

#define QF_CPU_STUB(name, Args)                                            \
  __attribute__((weak)) QfStatus name(int32_t, const Args*) {              \
    return fail(QF_UNSUPPORTED, #name ": not built into the CPU backend"); \
  }
QF_OPS(QF_CPU_STUB)
#undef QF_CPU_STUB

}  // namespace qformer::cpu
