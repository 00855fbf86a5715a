// The table of kernels of one instruction set. Each family owns one struct of function pointers, filled by its *_kernels.h,
// which kernel_set.h compiles once per instruction set. Families call `kernels().FAMILY.function(...)` inside parallel_for.
#pragma once

#include <stdint.h>

#include "backend/backend.h"

namespace qformer::cpu {

// ---- linear ----
struct LinearKernels {
  // y = act(x) for n elements in place; used by tests of the dispatch until linear lands
  void (*activate)(float* x, int64_t n, int32_t kind);
};

struct CpuKernels {
  const char* level;  // as in QfDeviceInfo
  int32_t lanes;
  LinearKernels linear;
};

// The table chosen when first asked: the best the CPU runs, or the one QFORMER_ISA names (scalar, avx2, avx512, avx512bf16,
// neon). A name this CPU cannot run is ignored.
const CpuKernels& kernels();

// The table of that name, or null where this build or this CPU lacks it.
const CpuKernels* find_kernels(const char* level);

}  // namespace qformer::cpu
