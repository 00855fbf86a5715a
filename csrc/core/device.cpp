#include "core/device.h"

#include <algorithm>
#include <memory>
#include <mutex>

#include "core/backend_library.h"

namespace qformer {
namespace {

struct Registry {
  std::mutex mutex;
  std::vector<std::unique_ptr<Device>> devices;
};

Registry& registry() {
  // Leaked on purpose: tensors of other threads may outlive static destruction.
  static Registry* instance = new Registry;
  return *instance;
}

ErrorCode code_of(QfStatus status) {
  switch (status) {
    case QF_INVALID_ARGUMENT:
      return ErrorCode::kInvalidArgument;
    case QF_OUT_OF_MEMORY:
      return ErrorCode::kOutOfMemory;
    case QF_UNSUPPORTED:
      return ErrorCode::kUnsupported;
    case QF_DEVICE_FAULT:
      return ErrorCode::kCuda;
    default:
      return ErrorCode::kInternal;
  }
}

// A backend's only or first device has two names: "cuda" and "cuda:0".
bool is_named(const Device& device, std::string_view name) {
  if (device.name == name) return true;
  const std::string backend = device.backend->name;
  return device.index == 0 && (name == backend || name == backend + ":0");
}

Device* registered(std::string_view name) {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  for (const auto& device : all.devices) {
    if (is_named(*device, name)) return device.get();
  }
  return nullptr;
}

}  // namespace

void register_backend(const QfBackend* backend) {
  if (backend->abi != QF_BACKEND_ABI || backend->size != sizeof(QfBackend)) {
    fail(ErrorCode::kDevice, "backend %s has ABI %u (%u bytes), needed %u (%zu bytes)", backend->name, backend->abi,
         backend->size, QF_BACKEND_ABI, sizeof(QfBackend));
  }
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  for (const auto& device : all.devices) {
    if (device->backend == backend) return;
  }
  const int32_t count = backend->device_count();
  for (int32_t i = 0; i < count; ++i) {
    std::string name = backend->name;
    if (count > 1) name += ":" + std::to_string(i);
    all.devices.push_back(std::make_unique<Device>(Device{backend, i, std::move(name)}));
  }
}

Device& find_device(std::string_view name) {
  if (Device* device = registered(name)) return *device;
  load_backend_libraries();
  if (Device* device = registered(name)) return *device;
  std::string known, reasons;
  for (const Device* device : all_devices()) known += (known.empty() ? "" : ", ") + device->name;
  for (const UnusedDevice& unused : unused_devices()) reasons += "; " + unused.device + ": " + unused.reason;
  throw Error(ErrorCode::kDevice,
              "no device '" + std::string(name.substr(0, 60)) + "' (found: " + known + ")" + reasons);
}

std::vector<Device*> all_devices() {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  std::vector<Device*> devices;
  for (const auto& device : all.devices) devices.push_back(device.get());
  return devices;
}

void fail_with_status(const Device& device, QfStatus status, const char* what) {
  const char* reason = device.backend->last_error();
  fail(code_of(status), "%s: %s", what, reason != nullptr && *reason != '\0' ? reason : "failed without a message");
}

}  // namespace qformer
