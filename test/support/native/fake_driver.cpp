// A stand-in for libcuda.so.1: reports FAKE_CUDA_VERSION and fails to start with FAKE_CUDA_INIT. Being loaded is noted
// in the file FAKE_CUDA_LOADED.
#include <cstdio>
#include <cstdlib>

namespace {

int number(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? 0 : std::atoi(value);
}

struct Loaded {
  Loaded() {
    if (const char* path = std::getenv("FAKE_CUDA_LOADED")) {
      if (std::FILE* file = std::fopen(path, "w")) std::fclose(file);
    }
  }
} loaded;

}  // namespace

extern "C" int cuDriverGetVersion(int* version) {
  *version = number("FAKE_CUDA_VERSION");
  return 0;
}

extern "C" int cuInit(unsigned) { return number("FAKE_CUDA_INIT"); }

extern "C" int cuGetErrorString(int, const char** text) {
  *text = "system not yet initialized";
  return 0;
}
