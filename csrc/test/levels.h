// Runs a body once for every instruction set that this CPU has; under TSan, which threads matter to, for the best
// alone.
#pragma once

#include "cpu/kernels.h"

namespace qformer::test {

inline const char* const kLevels[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx", "neon"};

template <class Body>
void on_every_level(const Body& body) {
#if defined(__SANITIZE_THREAD__)
  body();
#else
  for (const char* level : kLevels) {
    const cpu::CpuKernels* table = cpu::find_kernels(level);
    if (table == nullptr) continue;
    cpu::override_kernels(table);
    body();
  }
  cpu::override_kernels(nullptr);
#endif
}

}  // namespace qformer::test
