// What the NVIDIA driver of this machine says about itself. Nothing is linked against it: libcuda.so.1 is opened at run
// time, and its version is read before anything else is asked of it, because a library for a newer CUDA must not be
// opened on an older driver.
#pragma once

#include <string>

namespace qformer {

struct CudaDriver {
  int version = 0;      // 1000 * major + 10 * minor, as cuDriverGetVersion gives it; 0: no driver
  std::string problem;  // one clause, why the driver cannot be used; empty where it can

  int major() const { return version / 1000; }
  // "12.4"
  std::string text() const { return std::to_string(major()) + "." + std::to_string(version % 1000 / 10); }
};

// Opens and starts the driver. Takes a tenth of a second where there is a GPU.
CudaDriver read_cuda_driver();

}  // namespace qformer
