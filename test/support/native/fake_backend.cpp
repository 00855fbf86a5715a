// A stand-in for libqformer_cuda<major>.so without any op. FAKE_MAJOR (a macro) is in the device's name; the
// environment variables FAKE_DEVICES and FAKE_ABI set the number of devices and the backend ABI.
#include <cstdio>
#include <cstdlib>

#include "backend/backend.h"

namespace {

int number(const char* name, int fallback) {
  const char* value = std::getenv(name);
  return value == nullptr ? fallback : std::atoi(value);
}

int32_t device_count() { return number("FAKE_DEVICES", 1); }
const char* last_error() { return "Old GPU has compute capability 6.1, needed 7.5 or newer"; }
QfStatus device_info(int32_t device, QfDeviceInfo* info) {
  *info = {};
  std::snprintf(info->name, sizeof(info->name), "GPU %d of library %d", device, FAKE_MAJOR);
  std::snprintf(info->level, sizeof(info->level), "sm_75");
  return QF_OK;
}

}  // namespace

extern "C" const QfBackend* qformer_backend(uint32_t abi) {
  static QfBackend table = {};
  table.abi = static_cast<uint32_t>(number("FAKE_ABI", QF_BACKEND_ABI));
  table.size = sizeof(QfBackend);
  table.name = "cuda";
  table.device_count = device_count;
  table.device_info = device_info;
  table.last_error = last_error;
  return table.abi == abi ? &table : nullptr;
}
