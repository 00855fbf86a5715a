// Backends in libraries of their own, found and opened at run time, so that the addon starts on any machine.
//
// CUDA: the newest libqformer_cuda<major>.so that the driver accepts, beside the addon or in the npm package
// @qformer/cuda<major>-linux-x64. QFORMER_BACKENDS: further libraries by path, separated by colons (tests open the
// emulated GPU so). Nothing is looked for before a device other than the CPU is asked for.
#pragma once

#include <string>
#include <vector>

namespace qformer {

// A kind of device that is not used here, and why, in one sentence.
struct UnusedDevice {
  std::string device;
  std::string reason;
};

// Opens what there is and registers its devices; does nothing when called again. Never throws for what it finds.
void load_backend_libraries();

// What load_backend_libraries could not use.
std::vector<UnusedDevice> unused_devices();

}  // namespace qformer
