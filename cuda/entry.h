// The entry points of the CUDA backend, one function per op of QF_OPS. An entry picks kernels and a launch shape for
// its arguments and puts them on the stream of context_of(device); it never waits for the device. The table
// (runtime/table.cpp) has checked the device and made it current before an entry runs.
#pragma once

#include "backend/backend.h"

namespace qformer::cuda {

#define QF_CUDA_ENTRY(name, Args) QfStatus name(int32_t device, const Args* args);
QF_OPS(QF_CUDA_ENTRY)
#undef QF_CUDA_ENTRY

}  // namespace qformer::cuda
