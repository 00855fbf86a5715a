// The registry of devices. A device is one entry of one backend: "cpu", "cuda:0", "emulated".
// Registered once per process and never removed, so a Device& stays valid.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"

namespace qformer {

struct Device {
  const QfBackend* backend;
  int32_t index;
  std::string name;
};

// Adds every device of a backend: one device is named like the backend, several get ":0", ":1", …
// Registering the same backend again does nothing. DEVICE if its ABI differs from ours.
void register_backend(const QfBackend* backend);

// Opens the backend libraries (core/backend_library.h) where the name is not known yet. DEVICE if there is none of that
// name; the message lists those that exist and says why others are not used.
Device& find_device(std::string_view name);

std::vector<Device*> all_devices();

[[noreturn]] void fail_with_status(const Device& device, QfStatus status, const char* what);
// Turns a failed status into an Error; `what` names the op.
inline void check_status(const Device& device, QfStatus status, const char* what) {
  if (status != QF_OK) fail_with_status(device, status, what);
}

}  // namespace qformer
