// The CUDA runtime API as this backend uses it: NVIDIA's header, or the emulator's model of the same names when the
// sources are built for the host (QF_EMULATED puts test/emulator first on the include path).
#pragma once

#include <cuda_runtime_api.h>
