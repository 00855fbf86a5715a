#include "core/backend_library.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>

#include "core/cuda_driver.h"
#include "core/device.h"

namespace qformer {
namespace {

namespace fs = std::filesystem;

#if defined(__x86_64__)
constexpr const char* kPlatform = "linux-x64";
#else
constexpr const char* kPlatform = "linux-arm64";
#endif

// The majors that there are libraries for, newest first.
constexpr std::array<int, 3> kCudaMajors = {13, 12, 11};

struct Loader {
  std::mutex mutex;
  bool loaded = false;
  std::vector<UnusedDevice> unused;
};

Loader& loader() {
  static Loader* instance = new Loader;  // leaked: other threads may ask while the process exits
  return *instance;
}

std::string package_of(int major) { return "@qformer/cuda" + std::to_string(major) + "-" + kPlatform; }
std::string file_of(int major) { return "libqformer_cuda" + std::to_string(major) + ".so"; }

// The folder of the addon (or the test program) that this code is part of.
fs::path own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code error;
  const fs::path file = fs::canonical(info.dli_fname, error);
  return error ? fs::path() : file.parent_path();
}

// Beside the addon, or in the platform package of a node_modules folder above it.
std::optional<fs::path> find_library(const fs::path& folder, int major) {
  std::error_code error;
  if (const fs::path beside = folder / file_of(major); fs::is_regular_file(beside, error)) return beside;
  for (fs::path above = folder;; above = above.parent_path()) {
    const fs::path installed = above / "node_modules" / package_of(major) / file_of(major);
    if (fs::is_regular_file(installed, error)) return installed;
    if (above == above.parent_path()) return std::nullopt;
  }
}

// Opens a library and registers its devices. Returns why not, or an empty string.
std::string open_backend(const fs::path& path) {
  using GetBackend = const QfBackend* (*)(uint32_t);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) return dlerror();
  const std::string file = path.filename().string();
  const auto get_backend = reinterpret_cast<GetBackend>(dlsym(library, "qformer_backend"));
  if (get_backend == nullptr) return file + " is not a backend of qformer";
  const QfBackend* backend = get_backend(QF_BACKEND_ABI);
  if (backend == nullptr)
    return file + " belongs to another version of qformer (this one needs backend ABI " +
           std::to_string(QF_BACKEND_ABI) + "): install the same version of both";
  if (backend->device_count() == 0) return backend->last_error();
  try {
    register_backend(backend);
  } catch (const Error& error) {
    return error.message;
  }
  return {};
}

// What to say when no library fits: which one to install, or that only a newer driver would take the one there is.
std::string no_library_problem(const CudaDriver& driver, const fs::path& folder) {
  const int wanted = std::min(driver.major(), kCudaMajors.front());
  const std::string install = "npm install " + package_of(wanted);
  for (const int major : kCudaMajors) {
    if (major <= driver.major() || !find_library(folder, major)) continue;
    return "the NVIDIA driver supports CUDA " + driver.text() + ", but " + file_of(major) + " needs CUDA " +
           std::to_string(major) + ".0 or newer: update the driver, or run '" + install + "'";
  }
  return "the NVIDIA driver supports CUDA " + driver.text() + ", but no library for CUDA " + std::to_string(wanted) +
         " is installed: run '" + install + "'";
}

// Returns why CUDA is not used, or an empty string.
std::string load_cuda() {
#ifndef __linux__
  return "CUDA is supported on Linux only";
#else
  const CudaDriver driver = read_cuda_driver();
  if (driver.version != 0 && driver.major() < kCudaMajors.back()) {
    return "the NVIDIA driver supports CUDA " + driver.text() + ", needed is CUDA " +
           std::to_string(kCudaMajors.back()) + ".0 or newer: update the driver";
  }
  if (!driver.problem.empty()) return driver.problem;
  const fs::path folder = own_folder();
  for (const int major : kCudaMajors) {
    if (major > driver.major()) continue;
    if (const auto library = find_library(folder, major)) return open_backend(*library);
  }
  return no_library_problem(driver, folder);
#endif
}

void load_named(std::vector<UnusedDevice>& unused) {
  const char* named = std::getenv("QFORMER_BACKENDS");
  std::string rest = named == nullptr ? "" : named;
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    const std::string path = rest.substr(0, colon);
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
    if (path.empty()) continue;
    if (std::string problem = open_backend(path); !problem.empty()) {
      unused.push_back({path, "QFORMER_BACKENDS: " + problem});
    }
  }
}

}  // namespace

void load_backend_libraries() {
  Loader& all = loader();
  std::lock_guard lock(all.mutex);
  if (all.loaded) return;
  all.loaded = true;
  load_named(all.unused);
  if (std::string problem = load_cuda(); !problem.empty()) all.unused.push_back({"cuda", std::move(problem)});
}

std::vector<UnusedDevice> unused_devices() {
  Loader& all = loader();
  std::lock_guard lock(all.mutex);
  return all.unused;
}

}  // namespace qformer
