// Chooses the kernel table once per process. Compiled for the baseline instruction set.

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace qformer::cpu {

extern const CpuKernels kernels_scalar;
#if defined(__x86_64__)
extern const CpuKernels kernels_avx2, kernels_avx512, kernels_avx512bf16, kernels_amx;
#elif defined(__aarch64__)
extern const CpuKernels kernels_neon;
#endif

namespace {

struct Candidate {
  const CpuKernels* table;
  bool (*supported)();
};

bool always() { return true; }

#if defined(__x86_64__)
// Every processor with AVX2 has F16C; clang 14 does not know the name.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Linux lends the tile registers to processes that ask, from then on to all their threads.
bool request_tile_data() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kAll = kBf16 | kTile;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kAll) != kAll) return false;
  static const bool permitted = request_tile_data();
  return permitted;
}
#endif

// Best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&kernels_amx, has_amx},       {&kernels_avx512bf16, has_avx512bf16},
    {&kernels_avx512, has_avx512}, {&kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {&kernels_neon, always},
#endif
    {&kernels_scalar, always},
};

std::atomic<const CpuKernels*> overridden{nullptr};

const CpuKernels& choose() {
  const char* wanted = std::getenv("QFORMER_ISA");
  const CpuKernels* table = wanted != nullptr ? find_kernels(wanted) : nullptr;
  if (table != nullptr) return *table;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported()) return *candidate.table;
  }
  return kernels_scalar;
}

}  // namespace

const CpuKernels* find_kernels(const char* level) {
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(candidate.table->level, level) == 0) return candidate.supported() ? candidate.table : nullptr;
  }
  return nullptr;
}

const CpuKernels& kernels() {
  static const CpuKernels& chosen = choose();
  const CpuKernels* table = overridden.load(std::memory_order_relaxed);
  return table != nullptr ? *table : chosen;
}

void override_kernels(const CpuKernels* table) { overridden.store(table, std::memory_order_relaxed); }

}  // namespace qformer::cpu
