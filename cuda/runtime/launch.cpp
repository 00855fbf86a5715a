#include "runtime/launch.h"

#include <mutex>
#include <unordered_map>

#include "runtime/device.h"

namespace qformer::cuda {
namespace {

constexpr size_t kDefaultSharedBytes = 48 << 10;

struct KernelKey {
  const void* kernel;
  int ordinal;
  bool operator==(const KernelKey& other) const { return kernel == other.kernel && ordinal == other.ordinal; }
};
struct KernelHash {
  size_t operator()(const KernelKey& key) const {
    return std::hash<const void*>()(key.kernel) * 31 + static_cast<size_t>(key.ordinal);
  }
};

// Per thread, so that a launch takes no lock: bytes of shared memory granted so far.
thread_local std::unordered_map<KernelKey, size_t, KernelHash> prepared;

}  // namespace

#ifndef QF_EMULATED

QfStatus prepare_kernel(const char* name, const void* kernel, size_t shared_bytes) {
  int ordinal = 0;
  if (const QfStatus status = check(cudaGetDevice(&ordinal), name); status != QF_OK) return status;
  const auto [entry, first] = prepared.try_emplace(KernelKey{kernel, ordinal}, kDefaultSharedBytes);
  if (first) {
    cudaFuncAttributes attributes;
    const QfStatus status = check(cudaFuncGetAttributes(&attributes, kernel), name);
    if (status != QF_OK) {
      prepared.erase(entry);
      return status;
    }
  }
  if (shared_bytes <= entry->second) return QF_OK;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (const QfStatus status = check(error, name); status != QF_OK) return status;
  entry->second = shared_bytes;
  return QF_OK;
}

QfStatus launch_raw(const char* name, cudaStream_t stream, const void* kernel, dim3 grid, dim3 block,
                    size_t shared_bytes, void** params, bool dependent) {
  if (const QfStatus status = prepare_kernel(name, kernel, shared_bytes); status != QF_OK) return status;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
#if CUDART_VERSION >= 12030  // older ones cannot capture such a launch
  if (dependent && current_compute_capability() >= 90) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
#else
  (void)dependent;
  (void)attribute;
#endif
  return check(cudaLaunchKernelExC(&config, kernel, params), name);
}

#endif

}  // namespace qformer::cuda
