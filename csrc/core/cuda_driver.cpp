#include "core/cuda_driver.h"

#include <dlfcn.h>

namespace qformer {
namespace {

constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE

using GetVersion = int (*)(int*);
using Init = int (*)(unsigned);
using GetErrorString = int (*)(int, const char**);

template <class Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

std::string start_problem(void* library, const std::string& version, int error) {
  if (error == kNoDevice) return "the NVIDIA driver (CUDA " + version + ") finds no GPU";
  const auto get_error_string = symbol<GetErrorString>(library, "cuGetErrorString");
  const char* reason = nullptr;
  if (get_error_string == nullptr || get_error_string(error, &reason) != 0 || reason == nullptr) reason = "no reason";
  return "the NVIDIA driver (CUDA " + version + ") does not start: " + reason + " (" + std::to_string(error) + ")";
}

}  // namespace

CudaDriver read_cuda_driver() {
  CudaDriver driver;
  // Never closed: a driver that has started cannot be unloaded.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    driver.problem = "no NVIDIA driver is installed (libcuda.so.1 is not found)";
    return driver;
  }
  const auto get_version = symbol<GetVersion>(library, "cuDriverGetVersion");
  const auto init = symbol<Init>(library, "cuInit");
  if (get_version == nullptr || init == nullptr || get_version(&driver.version) != 0) {
    driver.problem = "the NVIDIA driver does not tell its version";
    return driver;
  }
  if (const int error = init(0); error != 0) driver.problem = start_problem(library, driver.text(), error);
  return driver;
}

}  // namespace qformer
