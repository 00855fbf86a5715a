// Failure reporting inside the CUDA backend: a status plus a message kept for the calling thread
// (QfBackend::last_error). Errors of the CUDA runtime are told apart by what they mean for the device: after a "sticky"
// one nothing on that device can be trusted, so it is poisoned for the rest of the process.
#pragma once

#include "backend/backend.h"
#include "runtime/cuda_api.h"

namespace qformer::cuda {

// Keeps a printf-style message for this thread and returns `status`: `return fail(QF_UNSUPPORTED, "...")`.
QfStatus fail(QfStatus status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The message of this thread's last failure; empty before the first one.
const char* last_error();

// QF_OK for cudaSuccess; else keeps "WHAT: reason" and returns QF_OUT_OF_MEMORY, QF_DEVICE_FAULT (poisoning the
// thread's current device) or QF_INTERNAL. `what` names the op or the call.
QfStatus check(cudaError_t error, const char* what);

// True where the error leaves the device's context unusable, so that every later call would fail with it again.
bool is_sticky(cudaError_t error);

}  // namespace qformer::cuda
