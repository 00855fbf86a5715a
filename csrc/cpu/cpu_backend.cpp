// Fills the backend table. Every op entry is wrapped so that no exception crosses the C interface.

#include "cpu_backend.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include "error.h"
#include "families.h"
#include "kernels.h"
#include "memory.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

template <auto Entry, class Args>
QfStatus guarded(int32_t device, const Args* args) noexcept {
  try {
    return Entry(device, args);
  } catch (const std::bad_alloc&) {
    return fail(QF_OUT_OF_MEMORY, "cpu: out of memory for working buffers, %lld bytes are free",
                static_cast<long long>(available_memory()));
  } catch (const std::exception& error) {
    return fail(QF_INTERNAL, "cpu: %s", error.what());
  }
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

int32_t device_count() { return 1; }

QfStatus device_info(int32_t, QfDeviceInfo* info) {
  static const std::string model = cpu_model();
  *info = {};
  std::snprintf(info->name, sizeof(info->name), "%s (%s)", model.c_str(), kernels().level);
  std::snprintf(info->level, sizeof(info->level), "%s", kernels().level);
  info->memory = total_memory();
  info->free_memory = available_memory();
  info->threads = pool_threads();
  return QF_OK;
}

QfStatus backend_alloc(int32_t, size_t bytes, void** out) { return allocate(bytes, out); }

void backend_free(int32_t, void* ptr, size_t bytes) { release(ptr, bytes); }

QfStatus copy_bytes(int32_t, void* dst, const void* src, size_t bytes) {
  if (bytes != 0) std::memcpy(dst, src, bytes);
  return QF_OK;
}

QfStatus fill_zero(int32_t, void* dst, size_t bytes) {
  if (bytes != 0) std::memset(dst, 0, bytes);
  return QF_OK;
}

QfStatus synchronize(int32_t) { return QF_OK; }

constexpr QfBackend kBackend = {.abi = QF_BACKEND_ABI,
                                .size = sizeof(QfBackend),
                                .name = "cpu",
                                .device_count = device_count,
                                .device_info = device_info,
                                .last_error = last_error,
                                .alloc = backend_alloc,
                                .free = backend_free,
                                .upload = copy_bytes,
                                .download = copy_bytes,
                                .fill_zero = fill_zero,
                                .synchronize = synchronize,
                                .host_memory = 1,
                                .activation_dtypes = 1 << QF_F32,
                                .capture_begin = nullptr,
                                .capture_end = nullptr,
                                .graph_launch = nullptr,
                                .graph_free = nullptr,
#define QF_CPU_TABLE_ENTRY(name, Args) .name = guarded<cpu::name, Args>,
                                QF_OPS(QF_CPU_TABLE_ENTRY)
#undef QF_CPU_TABLE_ENTRY
};

}  // namespace

const QfBackend* cpu_backend() { return &kBackend; }

int32_t threads() { return pool_threads(); }

void set_threads(int32_t count) { set_pool_threads(count); }

}  // namespace qformer::cpu
